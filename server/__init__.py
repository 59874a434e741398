"""The door: what providers, handlers and strangers' plugins may import. Nothing behind it is promised."""

from .access import identity_of, public, requires, signed_in
from .answers import answer, check_if_match, entity_tag
from .bodies import body
from .hookspecs import Answer, Command, CommandContext, House, Provider, Setting, hookimpl
from .identity import CredentialRejected, Identity, Unavailable
from .pages import page
from .scope import read, scoped
from .targets import is_local

__all__ = [
    "Answer", "Command", "CommandContext", "CredentialRejected", "House", "Identity", "Provider", "Setting",
    "Unavailable", "answer", "body", "check_if_match", "entity_tag", "hookimpl", "identity_of", "is_local", "page",
    "public", "read", "requires", "scoped", "signed_in",
]  # fmt: skip
