"""The public interface: everything that providers, handlers and plugins may import. All other modules may change."""

# ruff: noqa: E402 - missing dependencies must be reported before anything imports them
from .installation import refuse_to_start_without

refuse_to_start_without()


from .auth.accepted import accepted_types
from .auth.access import public, requires, signed_in
from .auth.identity import Identity, caller_of, identity_of
from .auth.names import is_plain_text, with_org_prefix
from .auth.rejected import CredentialRejected
from .auth.revocation import revocation_failed
from .bounded import BoundedDict
from .database.scope import read, scoped, write
from .database.violations import CheckViolation, ForeignKeyViolation, UniqueViolation
from .gate.access_table import access_table
from .gate.idempotency import answers_secret
from .http.answers import answer, answer_row, check_if_match, entity_tag
from .http.bodies import body
from .http.body_bytes import raw_body
from .http.body_stream import body_stream
from .http.calls_tools import calls_tools
from .http.client_address import client_address, client_network, is_local
from .http.content_disposition import content_disposition
from .http.cors import checked_origin
from .http.describe import describe
from .http.error_shape import ErrorDetails
from .http.errors import (
    ApiError,
    BadRequest,
    Conflict,
    Forbidden,
    NotFound,
    PreconditionFailed,
    TooManyRequests,
    Unavailable,
    Unprocessable,
)
from .http.limited import limited
from .http.origins import is_foreign_origin
from .http.pagination import page
from .http.query import query
from .http.row_id import row_id
from .messages import nearest_name
from .openapi.document import openapi_document
from .plugins.hookspecs import Answer, Command, CommandContext, House, Provider, hookimpl
from .plugins.services import service
from .settings.setting import Setting
from .single_flight import SingleFlight
from .streams.change import Change
from .streams.events import Stream, event_stream
from .streams.socket import socket
from .tools.calls import call_tool, tools_of
from .tools.table import Tool

__all__ = [
    "Answer", "ApiError", "BadRequest", "BoundedDict", "Change", "CheckViolation", "Command", "CommandContext",
    "Conflict", "CredentialRejected", "ErrorDetails", "Forbidden", "ForeignKeyViolation", "House", "Identity", "NotFound",
    "PreconditionFailed", "Provider", "Setting", "SingleFlight", "Stream", "TooManyRequests", "Tool", "Unavailable",
    "UniqueViolation", "Unprocessable", "accepted_types", "access_table", "answer", "answer_row", "answers_secret",
    "body", "body_stream", "call_tool", "caller_of", "calls_tools", "check_if_match", "checked_origin", "client_address",
    "client_network", "content_disposition", "describe", "entity_tag", "event_stream", "hookimpl", "identity_of",
    "is_foreign_origin", "is_local", "is_plain_text", "limited", "nearest_name", "openapi_document", "page", "public", "query",
    "raw_body", "read", "requires", "revocation_failed", "row_id", "scoped", "service", "signed_in", "socket", "tools_of",
    "with_org_prefix", "write",
]  # fmt: skip
