// The operator's page: what it knows, how it learns of news, and what it does. What it looks like is in views.js.
import { byId, nameInAddress, say, show } from "/page/dom.js";
import { openRefusal } from "/page/records.js";
import { draw, drawCall, initial } from "/page/views.js";

const TOKEN = "ringfence-token";
/**
 * A stream that says nothing for so long is dead, in milliseconds: the server sends something every 15 s. A connection may be gone without
 * anybody telling: the laptop slept, the network forgot it. `data-silence-ms` of the document sets another limit.
 */
const silenceMs = () => Number(document.documentElement.dataset.silenceMs) || 40_000;
const state = { parts: {}, calls: new Map(), you: null, offset: 0 };

// === the server ===

function headers() {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { authorization: `Bearer ${token}` } : {};
}

/** Why a request was refused, in the server's words. */
async function reason(answer) {
  try {
    const told = await answer.json();
    return told.message ?? told.error ?? `HTTP ${answer.status}`;
  } catch {
    return `HTTP ${answer.status}`;
  }
}

/** Aborts a request once nothing was heard for too long. */
function watchdog(abort) {
  let [date, up] = [Date.now(), performance.now()];
  // The one clock stands still while the machine sleeps, the other may be set back.
  const silence = () => Math.max(Date.now() - date, performance.now() - up);
  const timer = setInterval(() => {
    if (silence() > silenceMs()) abort.abort(new Error(`nothing came for ${Math.round(silence() / 1000)} s`));
  }, 500);
  return { heard: () => { [date, up] = [Date.now(), performance.now()]; }, end: () => clearInterval(timer) };
}

/** Reads server-sent events; `EventSource` cannot show a token. Returns when the stream is over; throws when it fails, or falls silent. */
async function events(path, take, stop) {
  const abort = new AbortController();
  stop?.addEventListener("abort", () => abort.abort(stop.reason));
  const silence = watchdog(abort);
  try {
    await read(path, take, abort.signal, silence.heard);
  } finally {
    silence.end();
  }
}

async function read(path, take, signal, heard) {
  const answer = await fetch(path, { headers: { ...headers(), accept: "text/event-stream" }, cache: "no-store", signal });
  if (!answer.ok) throw Object.assign(new Error(await reason(answer)), { status: answer.status });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let [text, from] = ["", 0];
  for (;;) {
    const { value, done } = await reader.read();
    heard();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n", from)) >= 0; text = text.slice(end + 2), from = 0) {
      const lines = text.slice(0, end).split("\n");
      const of = (name) => lines.find((one) => one.startsWith(name))?.slice(name.length);
      const data = of("data: ");
      if (data !== undefined) take(of("event: "), JSON.parse(data));
    }
    from = Math.max(0, text.length - 1);
  }
}

/** Asks for something. Returns the answer, or throws with the server's reason. */
async function ask(path) {
  const answer = await fetch(path, { headers: headers(), cache: "no-store" });
  if (!answer.ok) throw new Error(await reason(answer));
  return answer.json();
}

/** Asks for a change. Returns the answer, or throws with the server's reason. */
export async function act(path, body) {
  const answer = await fetch(path, {
    method: "POST", headers: { ...headers(), "content-type": "application/json" }, body: JSON.stringify(body ?? {}),
  });
  if (!answer.ok) throw new Error(await reason(answer));
  return answer.json();
}

// === everything ===

let due = false;
function redraw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    draw(state);
  });
}

function take(name, data) {
  if (name === "you") state.you = data;
  if (name === "whole") state.calls = new Map();
  if (name === "whole" || name === "change") {
    state.parts = name === "whole" ? data.parts : { ...state.parts, ...data.parts };
    for (const call of data.put) state.calls.set(call.callId, call);
    for (const id of data.gone ?? []) state.calls.delete(id);
    state.offset = Date.parse(data.at) - Date.now();
    state.at = data.at;
  }
  link("Live", "live");
  redraw();
  openLinked();
}

function link(text, tone) {
  say(byId("link"), text);
  byId("link").dataset.tone = tone;
}

async function watch() {
  for (let failures = 0; ;) {
    try {
      await events("/api/stream", (name, data) => {
        failures = 0;
        take(name, data);
      });
    } catch (error) {
      if (error.status === 401 || error.status === 403) {
        link("No access", "off");
        // A token begins the page anew.
        return askToken(error.message);
      }
      failures += 1;
    }
    link("Connection lost, trying again. What is shown may be old.", "off");
    redraw();
    await new Promise((done) => setTimeout(done, Math.min(500 * 2 ** failures, 10_000) * (0.5 + Math.random() / 2)));
  }
}

// === the token ===

function askToken(why) {
  say(byId("token-error"), why ?? "");
  if (!byId("token").open) byId("token").showModal();
  byId("token-text").focus();
}

/** Begins anew: nothing of what the old one showed stays. */
function useToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
  location.reload();
}

byId("token-open").addEventListener("click", () => askToken());
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = byId("token-text").value.trim().replace(/^Bearer\s+/i, "");
  if (/^[\w.\-]+$/.test(token)) useToken(token);
  else say(byId("token-error"), "That is no token: it has letters, digits, dots, dashes and underscores alone.");
});
byId("token-forget").addEventListener("click", () => useToken(""));

// === one call ===

const call = { stop: null, id: null, shown: null };

export function openCall(id) {
  closeCall();
  call.stop = new AbortController();
  Object.assign(call, { id, shown: { said: [], partial: null, call: state.calls.get(id) ?? { callId: id } } });
  drawCall(call.shown, state);
  nameInAddress(byId("call-dialog"), `calls/${encodeURIComponent(id)}`);
  byId("call-dialog").showModal();
  byId("call-title").focus();
  follow(id, call.shown, call.stop.signal);
}

async function follow(id, shown, stop) {
  while (!stop.aborted) {
    try {
      shown.said = [];
      await events(`/api/calls/${encodeURIComponent(id)}/stream`, (name, data) => {
        shown.error = null;
        if (name === "call") shown.call = data;
        if (name === "said") {
          shown.said.push(...data);
          shown.partial = null;
        }
        if (name === "partial") shown.partial = data;
        if (!stop.aborted) drawCall(shown, state);
      }, stop);
    } catch (error) {
      if (stop.aborted) return;
      shown.error = error.message;
      drawCall(shown, state);
      if (error.status) return;
    }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

function closeCall() {
  call.stop?.abort();
  call.stop = null;
  if (byId("call-dialog").open) byId("call-dialog").close();
}
byId("call-dialog").addEventListener("close", () => {
  // It may show another call already.
  if (!byId("call-dialog").open) call.stop?.abort();
});

// === acts, each after a question ===

let confirmed = async () => {};
/** Asks; `run(reason)` does it, its text is told. `needsReason`: nothing happens without one. */
export function confirmAct({ title, text, yes, no, reason, needsReason, run }) {
  say(byId("confirm-title"), title);
  say(byId("confirm-text"), text);
  say(byId("confirm-yes"), yes);
  say(byId("confirm-no"), no ?? "Cancel");
  say(byId("confirm-error"), "");
  show(byId("confirm-reason-part"), Boolean(reason || needsReason));
  const field = byId("confirm-reason");
  field.value = "";
  field.required = Boolean(needsReason);
  confirmed = run;
  byId("confirm").showModal();
  (reason || needsReason ? field : byId("confirm-no")).focus();
}

/** Says for a while what was done. */
function told(text) {
  // What stands behind an open dialog is neither seen nor heard.
  (document.querySelector("dialog[open]") ?? document.body).append(byId("done"));
  say(byId("done"), text);
  setTimeout(() => say(byId("done"), ""), 8000);
}

byId("confirm-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = byId("confirm-yes");
  // A disabled button would lose the focus.
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  try {
    const done = await confirmed(byId("confirm-reason").value.trim());
    byId("confirm").close();
    told(done);
  } catch (error) {
    say(byId("confirm-error"), error.message);
  }
  button.removeAttribute("aria-disabled");
});

byId("call-hangup").addEventListener("click", () => {
  const { id, shown } = call;
  confirmAct({
    title: "Hang up this call?", yes: "Hang up", reason: true,
    text: `The provider is told to end ${id} of ${shown.call.businessId ?? "?"}. Both sides hear it end. Its slot is released once the provider says that it is over.`,
    run: async (reason) => {
      const done = await act(`/api/calls/${encodeURIComponent(id)}/hangup`, reason ? { reason } : {});
      return `Hang up ${id}: ${typeof done === "string" ? done : done.result ?? "asked"}`;
    },
  });
});

byId("call-release").addEventListener("click", () => {
  const { id } = call;
  confirmAct({
    title: "Release the slot of this call?", yes: "Release", needsReason: true,
    text: `The slot of ${id} is released without asking the provider. If the call goes on, more calls are up than were bought. Use it for calls that are surely over.`,
    run: async (reason) => {
      await act(`/api/calls/${encodeURIComponent(id)}/release`, { force: true, reason });
      return `The slot of ${id} was released`;
    },
  });
});

for (const button of document.querySelectorAll("[data-close]")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

// === views ===

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** What the address names within its view: a call, a refusal. It is opened once it is known who asks. */
let linked = null;
function openLinked() {
  if (!state.you || !linked) return;
  const [view, id] = linked;
  linked = null;
  if (view === "calls") openCall(id);
  if (view === "refusals") openRefusal(id);
}

function route() {
  const known = [...document.querySelectorAll("main > section")].map((section) => section.id.slice(5));
  const [wanted, id] = location.hash.slice(1).split("/");
  if (wanted === "main") return byId("main").focus();
  for (const dialog of ["call-dialog", "explain-dialog"]) if (byId(dialog).open) byId(dialog).close();
  linked = id ? [wanted, decoded(id)] : null;
  const view = known.includes(wanted) ? wanted : "overview";
  for (const name of known) show(byId(`view-${name}`), name === view);
  for (const item of document.querySelectorAll("nav a")) {
    if (item.hash === `#${view}`) item.setAttribute("aria-current", "page");
    else item.removeAttribute("aria-current");
  }
  if (state.view && state.view !== view) scrollTo(0, 0);
  state.view = view;
  document.title = `${byId(`h-${view}`).textContent} · ringfence`;
  draw(state);
  openLinked();
}
addEventListener("hashchange", route);
initial(state, redraw, { act, ask, confirmAct, openCall, told });
route();
// Ages grow without news.
setInterval(redraw, 1000);
watch();
