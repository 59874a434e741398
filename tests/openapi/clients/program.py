"""Called by tests/openapi/test_clients.py: every call is typed by what openapi-python-client made of the document."""

import json
import sys
from http import HTTPStatus
from uuid import UUID

from generated import AuthenticatedClient, Client
from generated.api.data import change_data, create_data
from generated.api.me import get_me
from generated.api.orgs import add_todo, list_todos
from generated.models import Change, DataRow, Error, NewRow, TodoAppNewTodo, TodoAppTodo
from generated.types import Unset


def main(url: str, token: str) -> None:
    client = AuthenticatedClient(base_url=url, token=token)
    made = add_todo.sync_detailed("north", client=client, body=TodoAppNewTodo(title="from Python"))
    assert made.status_code is HTTPStatus.CREATED
    assert isinstance(made.parsed, TodoAppTodo)
    todo_id: UUID = made.parsed.id

    page = list_todos.sync_detailed("north", client=client, limit=1)
    assert isinstance(page.parsed, list)
    assert page.parsed[0].id == todo_id
    assert 'rel="next"' in page.headers["Link"]

    wrong = add_todo.sync("north", client=client, body=TodoAppNewTodo(title=""))
    assert isinstance(wrong, Error)
    assert not isinstance(wrong.fields, Unset)
    fields: list[str] = [bad.field for bad in wrong.fields]

    stranger = get_me.sync(client=Client(base_url=url))  # type: ignore[arg-type]  # it knows that this route needs a credential
    assert isinstance(stranger, Error)

    row = create_data.sync(client=client, body=NewRow(name="old"))
    assert isinstance(row, DataRow)
    changed = change_data.sync(str(row.id), client=client, body=Change(name="new"))
    assert isinstance(changed, DataRow)
    print(json.dumps({"fields": fields, "reason": stranger.reason, "name": changed.name}))


main(*sys.argv[1:])
