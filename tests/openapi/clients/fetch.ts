// Checked by tests/openapi/test_clients.py: the same calls, typed by openapi-typescript.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

const client = createClient<paths>({ baseUrl: "http://127.0.0.1:1", headers: { Authorization: "Bearer x" } });

export async function calls(): Promise<void> {
  const path = { org_id: "north" };
  const made = await client.POST("/api/orgs/{org_id}/todos", { params: { path }, body: { title: "one" } });
  const todo: components["schemas"]["TodoAppTodo"] | undefined = made.data;
  const fields: string[] | undefined = made.error?.fields?.map((bad) => bad.field);
  const page = await client.GET("/api/orgs/{org_id}/todos", { params: { path, query: { limit: 2, cursor: "x" } } });
  const titles: string[] | undefined = page.data?.map((one) => one.title);
  const reason: string | undefined = page.error?.reason;
  // Nothing else must be sent with a PATCH.
  await client.PATCH("/api/data/{id}", { params: { path: { id: todo?.id ?? "" } }, body: { name: "new" } });
  await client.PATCH("/api/data/{id}", { params: { path: { id: "" } }, body: { payload: { a: 1 } } });
  await client.POST("/api/keys", { body: { name: "mine" } });
  // @ts-expect-error a title is required
  await client.POST("/api/orgs/{org_id}/todos", { params: { path }, body: {} });
  // @ts-expect-error and is a string
  await client.POST("/api/orgs/{org_id}/todos", { params: { path }, body: { title: 1 } });
  console.log(fields, titles, reason);
}
