"""The door: what providers, handlers and strangers' plugins may import. Nothing behind it is promised."""

# ruff: noqa: E402 - first of all: is there anything to import?
from .needed import refuse_to_start_without

refuse_to_start_without()


from .accepted import accepted_types
from .access import identity_of, public, requires, signed_in
from .addresses import client_address, client_network
from .answers import answer, check_if_match, entity_tag
from .bodies import body, raw_body
from .description import describe
from .hookspecs import Answer, Command, CommandContext, House, Provider, Setting, hookimpl
from .idempotency import answers_secret
from .identity import CredentialRejected, Identity, Unavailable
from .openapi import openapi_document
from .pages import page
from .scope import read, scoped
from .targets import is_local

__all__ = [
    "Answer", "Command", "CommandContext", "CredentialRejected", "House", "Identity", "Provider", "Setting",
    "Unavailable", "accepted_types", "answer", "answers_secret", "body", "check_if_match", "client_address",
    "client_network", "describe", "entity_tag", "hookimpl", "identity_of", "is_local", "openapi_document", "page", "public",
    "raw_body", "read", "requires", "scoped", "signed_in",
]  # fmt: skip
