"""The invoices of the active organisation, for callers with the permissions `org:invoices:…`."""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from aiohttp import web
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from server import (
    answer,
    answer_row,
    body,
    describe,
    entity_tag,
    hookimpl,
    identity_of,
    page,
    read,
    requires,
    row_id,
    write,
)

routes = web.RouteTableDef()

# An amount is a decimal text in requests and responses: clients may read a JSON number as a float and lose digits.
COLUMNS = "id, organization_id, created_by, customer, amount::text AS amount, currency, due_on, memo, created_at, updated_at"
PAGE = f"""SELECT {COLUMNS} FROM invoices
           WHERE organization_id = $1 AND (created_at, id) < ($2, $3) ORDER BY created_at DESC, id DESC LIMIT $4"""
ONE = f"SELECT {COLUMNS} FROM invoices WHERE organization_id = $1 AND id = $2"
# The date is passed as text: asyncpg takes the first and the last date of Python for -infinity and infinity.
INSERT = f"""INSERT INTO invoices (organization_id, created_by, customer, amount, currency, due_on, memo)
             VALUES ($1, $2, $3, $4, $5, $6::text::date, $7) RETURNING {COLUMNS}"""


def _a_date(text: str) -> str:
    date.fromisoformat(text)
    return text


class NewInvoice(BaseModel):
    """A new invoice as the client sends it; the server sets the other columns."""

    model_config = ConfigDict(extra="forbid")
    customer: Annotated[str, Field(strict=True, min_length=1, max_length=200)]
    amount: Annotated[str, Field(strict=True, pattern=r"^[0-9]{1,10}(\.[0-9]{1,2})?$")]
    currency: Annotated[str, Field(strict=True, pattern=r"^[A-Z]{3}$")]
    due_on: Annotated[str, Field(strict=True, pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"), AfterValidator(_a_date)] | None = None
    memo: Annotated[str, Field(strict=True, max_length=2000)] | None = None


class Invoice(BaseModel):
    """An organisation's invoice."""

    model_config = ConfigDict(extra="forbid")
    id: UUID
    organization_id: str
    created_by: str
    customer: str
    amount: Annotated[str, Field(pattern=r"^[0-9]{1,10}\.[0-9]{2}$", examples=["12.50"])]
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    due_on: date | None
    memo: str | None
    created_at: AwareDatetime
    updated_at: AwareDatetime


@routes.get("/api/invoices")
@requires(permission="org:invoices:read")
@describe(returns=list[Invoice], page=True, summary="List the organisation's invoices")
async def list_invoices(request: web.Request) -> web.Response:
    at = page(request)
    return at.answer(await read(request, PAGE, identity_of(request).org_id, *at.args))


@routes.get("/api/invoices/{id}")
@requires(permission="org:invoices:read")
@describe(returns=Invoice, if_none_match=True, headers=["ETag"], summary="Get an invoice")
async def get_invoice(request: web.Request) -> web.Response:
    row = (await read(request, ONE, identity_of(request).org_id, row_id(request))).only()
    if row is None:
        raise web.HTTPNotFound
    return answer_row(request, row)


@routes.post("/api/invoices")
@requires(permission="org:invoices:create")
@describe(body=NewInvoice, answers={201: Invoice}, headers=["Location", "ETag"], summary="Create an invoice")
async def create_invoice(request: web.Request) -> web.Response:
    new, caller = await body(request, NewInvoice), identity_of(request)
    values = (new.customer, Decimal(new.amount), new.currency, new.due_on, new.memo)
    row = await write(request, INSERT, caller.org_id, caller.actor, *values)
    if row is None:  # a trigger has dropped it
        raise web.HTTPNotFound
    return answer(row, 201, {"Location": f"/api/invoices/{json.loads(row)['id']}", "ETag": entity_tag(row)})


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
