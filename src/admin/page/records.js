// Refusals with their explanation, webhooks and deliveries with their replay.
import { byId, h, keep, nameInAddress, say, show, showAttributes, span, table } from "/page/dom.js";
import { search } from "/page/search.js";
import { ago, clock, mayChange, number, offer, when, words } from "/page/words.js";

const tables = {};
const found = {};

// === refusals ===

const limitOf = (one) => one.limit_name && `${one.limit_name}: ${one.current ?? "?"} of ${one.limit ?? "?"}`;

function initialRefusals({ ask }, redraw) {
  tables.refusals = table(byId("refusals-list"), "h-refusals", [
    { name: "When", of: (one) => when(one.at) },
    { name: "Business", class: "name", of: (one) => one.business },
    { name: "Reason", of: (one) => words(one.code) },
    { name: "Limit", of: limitOf },
    { name: "What happened", of: (one) => (one.observed ? "let through (observe)" : "refused"), tone: (one) => (one.observed ? "" : "warn") },
    { name: "Direction", of: (one) => one.direction },
    { name: "Account", of: (one) => one.account },
    { name: "Times sent", of: (one) => String(one.attempts ?? 1) },
    { name: "Refusal", class: "id", cell: () => h("a"), update: (link, one) => {
      say(link, one.id);
      link.setAttribute("href", `#refusals/${encodeURIComponent(one.id)}`);
    } },
    { name: "Explain", hidden: true, class: "act", cell: (item) => h("button", { type: "button", click: () => openRefusal(item().id) }, "Why?"),
      update: (button, one) => button.setAttribute("aria-label", `Why was ${one.id} of ${one.business} refused?`) },
  ], (one) => one.id, "Nothing was refused, or nothing that you look for.");
  found.refusals = search({
    form: "refusal-filters", of: "/api/refusals", list: "refusals", ask, redraw,
    // A refusal's id finds it alone.
    path: ({ business }) => (business?.startsWith("rf_")
      ? ask(`/api/refusals/${encodeURIComponent(business)}`).then((one) => ({ refusals: [one] })) : null),
  });
  byId("refusals-more").addEventListener("click", found.refusals.more);
}

export function drawRefusals({ parts }) {
  const { isActive, found: answer, tell } = found.refusals;
  const form = byId("refusal-filters").elements;
  const shown = isActive() ? answer.items : parts.refusals;
  tell(parts.refusals);
  for (const [name, of] of [["code", (one) => one.code], ["account", (one) => one.account]]) {
    offer(form[name], [...(parts.refusals ?? []), ...(answer.items ?? [])].map(of), (value) => h("option", { value }, name === "code" ? words(value) : value));
  }
  say(byId("refusals-said"), said(shown, answer, isActive(), "refusals"));
  tables.refusals(isActive() && !shown && !answer.error ? [] : shown);
  show(byId("refusals-more"), isActive() && Boolean(answer.next));
}

/** How much of a list is shown; `what` is a plural. */
function said(shown, { error, next }, isSearched, what) {
  if (isSearched && error) return `The search failed: ${error}`;
  if (!shown) return isSearched ? "Searching…" : "";
  const count = `${number.format(shown.length)} ${shown.length === 1 ? what.slice(0, -1) : what}`;
  if (isSearched) return `${count} found${next ? " so far, and there are more" : ""}.`;
  return shown.length < 100 ? `${count}.` : `The latest 100 ${what}; search for older ones.`;
}

// === why ===

const holder = (one) => [one.callId, `of ${one.businessId}`, one.phase, `${span(one.ageSecs * 1000)} old`,
  one.otherNumber && `to or from ${one.otherNumber}`].filter(Boolean).join(", ");
const lines = (list, items) => keep(byId(list), items, (one) => one, () => h("li"), (item, one) => say(item, one));
const more = (holders, n) => [...(holders ?? []).map(holder), ...(n ? [`and ${number.format(n)} more`] : [])];

let explained = 0;
let asking = null;

/** Opens a refusal with its explanation. */
export async function openRefusal(id) {
  const mine = ++explained;
  nameInAddress(byId("explain-dialog"), `refusals/${encodeURIComponent(id)}`);
  say(byId("explain-title"), `Refusal ${id}`);
  showAttributes(byId("explain-attributes"), [["Problem", "Asking…"]]);
  for (const list of ["explain-do", "explain-limits", "explain-then"]) lines(list, []);
  for (const part of ["explain-now", "explain-then-part"]) show(byId(part), false);
  if (!byId("explain-dialog").open) byId("explain-dialog").showModal();
  byId("explain-title").focus();
  try {
    const answer = await asking(`/api/explain?id=${encodeURIComponent(id)}`);
    // Meanwhile another one may have been asked for.
    if (mine === explained) drawExplained(answer);
  } catch (error) {
    if (mine === explained) showAttributes(byId("explain-attributes"), [["Problem", error.message]]);
  }
}

function drawExplained({ refusal, decision, limits, heldThen, moreHeldThen }) {
  showAttributes(byId("explain-attributes"), [
    ["When", when(refusal.at)], ["Business", refusal.business], ["What happened", refusal.observed ? "would have been refused, and was sent" : "refused"],
    ["Code", refusal.code], ["Limit", limitOf(refusal)], ["Means", refusal.means], ["Fix", refusal.fix], ["Times sent", refusal.attempts],
  ]);
  const then = more(heldThen, moreHeldThen);
  lines("explain-then", then);
  show(byId("explain-then-part"), then.length > 0);
  say(byId("explain-decision"), decision
    ? `The same call now: ${[decision.outcome, decision.code && words(decision.code), decision.because].filter(Boolean).join(": ")}.`
    : "Its business or account is no longer in the config, so nothing is known of now.");
  lines("explain-do", decision?.advice ?? []);
  lines("explain-limits", (limits ?? []).flatMap((limit) => [
    `${limit.name}: ${limit.used} of ${limit.limit}${limit.full ? ", full" : ""} (${limit.from})`,
    ...(limit.full ? more(limit.holders, limit.moreHolders).map((one) => `held by ${one}`) : []),
  ]));
  show(byId("explain-now"), true);
}

// === webhooks ===

const became = (one) => one.outcome ?? (one.parkedAt ? "failed and parked" : "waits");

function initialWebhooks(state, redraw, { act, ask, confirmAct, openCall, told }) {
  const ofCall = { name: "Call", class: "id", cell: (item) => h("button", { type: "button", class: "plain", click: () => openCall(item().callId) }),
    update: (button, one) => {
      say(button, one.callId ?? "");
      button.setAttribute("aria-label", `Open call ${one.callId}`);
      show(button, Boolean(one.callId));
    } };
  const replay = (id, what) => confirmAct({
    title: `${what} again?`, yes: "Replay",
    text: `Webhook ${id} is applied once more, and its deliveries to your app are sent again. Your app may see it twice.`,
    run: async () => {
      const done = await act(`/api/events/${encodeURIComponent(id)}/replay`);
      found.webhooks.load();
      return `${id} was replayed: ${done.event?.outcome ?? "no outcome"}, ${done.deliveries ?? 0} deliveries`;
    },
  });
  const again = (id, what, may = () => true) => ({ name: "Act", hidden: true, class: "act",
    cell: (item) => h("button", { type: "button", click: () => replay(id(item()), what) }, "Replay"),
    update: (button, item) => { show(button, mayChange(state) && may(item)); button.setAttribute("aria-label", `Replay ${id(item)}`); } });
  const events = (place, label, last, empty, may) => table(byId(place), label, [
    { name: "Webhook", class: "id", of: (one) => one.id },
    { name: "Event", of: (one) => `${one.webhook}: ${one.event}` },
    { name: "Account", of: (one) => one.account },
    { name: "Came", of: (one) => ago(one.receivedAt) },
    ofCall,
    { name: "Tries", of: (one) => String(one.tries) },
    last,
    { name: "Error", class: "long", of: (one) => one.error },
    again((one) => one.id, "Apply this webhook", may),
  ], (one) => one.id, empty);
  const deliveries = (place, label, empty) => table(byId(place), label, [
    { name: "Delivery", class: "id", of: (one) => one.id },
    { name: "To", class: "long", of: (one) => one.url || "your app's events" },
    { name: "Route", of: (one) => one.route },
    ofCall,
    { name: "Tries", of: (one) => String(one.attempts) },
    { name: "Next try", of: (one) => clock(one.nextTryAt) },
    { name: "Error", class: "long", of: (one) => one.lastError },
    again((one) => one.eventId, "Deliver this"),
  ], (one) => one.id, empty);
  tables.found = events("found", "h-found", { name: "Outcome", of: became, tone: (one) => (one.parkedAt ? "warn" : "") },
    "No webhook that you look for.", (one) => one.bodyKept);
  tables.parked = events("parked", "h-parked", { name: "Parked", of: (one) => ago(one.parkedAt) }, "No webhook failed.");
  tables.unsettled = events("unsettled", "h-unsettled", { name: "Next try", of: (one) => clock(one.nextTryAt) }, "No webhook waits.");
  tables.givenUp = deliveries("given-up", "h-given-up", "No delivery was given up, or none that you look for.");
  tables.pending = deliveries("pending", "h-pending", "No delivery is under way, or none that you look for.");
  found.webhooks = search({ form: "webhook-filters", of: "/api/events", list: "events", ask, redraw, always: { state: "open" } });
  byId("webhooks-more").addEventListener("click", found.webhooks.more);
  byId("replay-all").addEventListener("click", async () => {
    const { state: which, ...narrowed } = found.webhooks.fields();
    const wanted = { ...narrowed, state: ["parked", "settled"].includes(which) ? which : "failed" };
    try {
      const { matching } = await ask(`/api/events/replay?${new URLSearchParams(wanted)}`);
      if (matching) replayAll(wanted, matching);
      else told("There is no such webhook to replay");
    } catch (error) {
      told(error.message);
    }
  });
  /** Replays as many at once as the server takes, until it has no more. */
  const replayAll = (wanted, matching) => confirmAct({
    title: `Replay ${number.format(matching)} ${matching === 1 ? "webhook" : "webhooks"}?`, yes: `Replay ${number.format(matching)}`, reason: true,
    text: `${wanted.state === "settled" ? "Webhooks that were applied" : "Webhooks that failed, and those with a delivery that was given up,"
    } are applied once more, the oldest first, and their deliveries are sent again. Your app may see them twice.`,
    run: async (reason) => {
      let [done, failed, errors, after] = [0, 0, [], null];
      do {
        const query = new URLSearchParams({ ...wanted, ...(after ? { after } : {}) });
        const part = await act(`/api/events/replay?${query}`, reason ? { reason } : {});
        [done, failed, after] = [done + part.replayed, failed + part.failed, part.next];
        errors.push(...part.errors);
        say(byId("confirm-text"), `${number.format(done + failed)} of ${number.format(matching)} …`);
      } while (after);
      found.webhooks.load();
      const what = errors.slice(0, 3).map((one) => `${one.id}: ${one.message}`).join("; ");
      if (failed) throw new Error(`${done} were replayed, ${failed} failed. ${what}`);
      return `${number.format(done)} webhooks were replayed`;
    },
  });
}

/** Webhooks that need attention, of those that are shown; null: not known. */
export function failed({ webhooks }) {
  if (!webhooks) return 0;
  const { parked, givenUp } = webhooks;
  return parked && givenUp ? new Set([...parked.map((one) => one.id), ...givenUp.map((one) => one.eventId)]).size : null;
}

export function drawWebhooks(state) {
  const { webhooks } = state.parts;
  if (!webhooks) return;
  const { isActive, found: answer, tell } = found.webhooks;
  tell(webhooks);
  const searched = isActive();
  const known = [...(webhooks.parked ?? []), ...(webhooks.unsettled ?? []), ...(answer.items ?? [])];
  offer(byId("webhook-filters").elements.account, [...(state.parts.status?.accounts ?? []).map((one) => one.name), ...known.map((one) => one.account)],
    (value) => h("option", { value }, value));
  show(byId("found-part"), searched);
  for (const part of ["parked-part", "unsettled-part"]) show(byId(part), !searched);
  say(byId("webhooks-said"), searched ? said(answer.items, answer, true, "webhooks") : "");
  tables.found(searched && !answer.items && !answer.error ? [] : answer.items);
  show(byId("webhooks-more"), searched && Boolean(answer.next));
  tables.parked(webhooks.parked);
  const parked = new Set((webhooks.parked ?? []).map((one) => one.id));
  tables.unsettled(webhooks.unsettled?.filter((one) => !parked.has(one.id)));
  for (const name of ["givenUp", "pending"]) tables[name](searched ? answer.answer[name] ?? (answer.error ? null : []) : webhooks[name]);
  const settled = byId("webhook-filters").elements.state.value === "settled";
  say(byId("replay-all"), settled ? "Replay those that were applied…" : "Replay those that failed…");
  show(byId("replay-all"), mayChange(state) && (searched || failed(state.parts) !== 0));
}

export function initialRecords(state, redraw, acts) {
  asking = acts.ask;
  initialRefusals(acts, redraw);
  initialWebhooks(state, redraw, acts);
}
