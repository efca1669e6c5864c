// Shows the OpenAPI document of this listener. What it says is written as text, never as HTML.

const $ = (id) => document.getElementById(id);

function make(tag, text, ...children) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

const name = (ref) => ref.split("/").pop();

// A schema in a few words: `Call[]`, `string or null`.
function words(schema) {
  if (!schema) return "";
  if (schema.$ref) return name(schema.$ref);
  if (schema.anyOf) return schema.anyOf.map(words).join(" or ");
  if (schema.type === "array") return `${words(schema.items)}[]`;
  if (schema.additionalProperties) return `{ name: ${words(schema.additionalProperties)} }`;
  if (schema.properties) return "object";
  return schema.format ?? schema.type ?? "anything";
}

function table(caption, heads, rows) {
  const head = make("tr", "", ...heads.map((text) => {
    const cell = make("th", text);
    cell.scope = "col";
    return cell;
  }));
  const body = rows.map((cells) => make("tr", "", ...cells.map((text) => make("td", text))));
  return make("div", "", make("table", "", make("caption", caption), make("thead", "", head), make("tbody", "", ...body)));
}

function fields(schema) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([key, of]) => [key, words(of), required.has(key) ? "always" : "sometimes"]);
}

function route(method, path, operation) {
  const shown = make("details", "", make("summary", "", make("code", `${method.toUpperCase()} ${path}`), document.createTextNode(` ${operation.summary}`)));
  if (operation.description) shown.append(make("p", operation.description));
  const parameters = operation.parameters ?? [];
  if (parameters.length) {
    shown.append(table("Parameters", ["name", "in", "type", "meaning"], parameters.map((one) => [one.name, one.in, words(one.schema), one.description ?? ""])));
  }
  for (const [kind, body] of Object.entries(operation.requestBody?.content ?? {})) {
    shown.append(make("p", `Body: ${kind}, ${words(body.schema)}${operation.requestBody.required ? "" : " (may be left out)"}`));
    if (body.schema.properties) shown.append(table("Fields of the body", ["name", "type", "there"], fields(body.schema)));
  }
  const answers = Object.entries(operation.responses).map(([status, answer]) => {
    const [kind, body] = Object.entries(answer.content ?? {})[0] ?? ["", {}];
    return [status, answer.description, body.schema && kind === "application/json" ? words(body.schema) : kind];
  });
  shown.append(table("Answers", ["status", "meaning", "body"], answers));
  shown.dataset.text = `${method} ${path} ${operation.summary}`.toLowerCase();
  return shown;
}

const answer = await fetch("/openapi.json");
const api = await answer.json();
$("about").textContent = `${api.info.title} ${api.info.version}. ${api.info.description}`;
for (const [path, methods] of Object.entries(api.paths)) {
  for (const [method, operation] of Object.entries(methods)) $("routes").append(route(method, path, operation));
}
for (const [key, schema] of Object.entries(api.components.schemas)) {
  const shown = make("details", "", make("summary", "", make("code", key), document.createTextNode(` ${schema.description}`)));
  if (schema.properties) shown.append(table("Fields", ["name", "type", "there"], fields(schema)));
  $("schemas").append(shown);
}
function search() {
  const wanted = $("search").value.trim().toLowerCase();
  let count = 0;
  for (const one of $("routes").children) {
    one.hidden = !one.dataset.text.includes(wanted);
    if (!one.hidden) count += 1;
  }
  $("shown").textContent = `${count} routes`;
}
$("search").addEventListener("input", search);
search();
