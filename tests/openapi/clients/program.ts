// Called by tests/openapi/test_clients.py: every call is typed by what @hey-api/openapi-ts made of the document.
import { addTodo, changeData, createData, getMe, listTodos } from "./hey";
import type { DataRow, Error as Refusal, TodoAppTodo } from "./hey";
import { createClient, createConfig } from "./hey/client";
import { client } from "./hey/client.gen";

function must<T>(value: T | undefined, what: string): T {
  if (value === undefined) throw new Error(what);
  return value;
}

async function main(baseUrl: string, token: string): Promise<void> {
  // One credential for every scheme of every route: a client that sent it twice would be refused.
  client.setConfig({ baseUrl, auth: token });
  const org_id = "north";

  const titles: string[] = [];
  for (const title of ["one", "two", "three"]) {
    const made = await addTodo({ path: { org_id }, body: { title } });
    const todo: TodoAppTodo = must(made.data, "a to-do was not made");
    titles.push(`${made.response?.status} ${todo.title} ${todo.done}`);
  }

  const first = await listTodos({ path: { org_id }, query: { limit: 2 } });
  const link: string = must(first.response?.headers.get("Link") ?? undefined, "no Link");
  const cursor = must(/[?&]cursor=([^&>]+)/.exec(link)?.[1], "no cursor");
  const second = await listTodos({ path: { org_id }, query: { limit: 2, cursor } });
  const pages = [first, second].map((page) => must<TodoAppTodo[]>(page.data, "no page").map((todo) => todo.title));

  const wrong = await addTodo({ path: { org_id }, body: { title: "" } });
  const invalid: Refusal = must(wrong.error, "no 422");
  const unknown = createClient(createConfig({ baseUrl }));
  const stranger = await getMe({ client: unknown });
  const refused: Refusal = must(stranger.error, "no 401");

  const kept = await createData({ body: { name: "old", payload: { a: 1 } } });
  const row: DataRow = must(kept.data, "no row");
  const changed = await changeData({ path: { id: row.id }, body: { name: "new" } });
  const after: DataRow = must(changed.data, "not changed");

  console.log(
    JSON.stringify({
      titles,
      pages,
      last: second.response?.headers.get("Link"),
      invalid: [wrong.response?.status, invalid.error, invalid.fields?.map((bad) => bad.field)],
      refused: [stranger.response?.status, refused.error, refused.reason],
      changed: [after.name, after.payload],
    }),
  );
}

main(process.argv[2] ?? "", process.argv[3] ?? "").catch((error: unknown) => {
  console.error(error);
  process.exitCode = 1;
});
