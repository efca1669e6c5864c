// What the page looks like: each view out of what app.js knows. All data goes through dom.js as text.
import { byId, h, keep, line, meter, say, setMeter, show, showAttributes, span, table } from "/page/dom.js";
import { drawRefusals, drawWebhooks, failed, initialRecords } from "/page/records.js";
import { drawRuns, initialRuns, openRuns } from "/page/runs.js";
import { age, ago, clock, filter, mayChange, number, offer, short, time } from "/page/words.js";

/** Calls that are drawn at once, and rows that "Show more" adds. */
const ROWS = 100;
/** Rows that are drawn at first. Limits come below businesses, and are not to be far. */
const FIRST = { calls: ROWS, businesses: 25 };
/** A look-up that is nearer than this is "near", in milliseconds. */
const NEAR_MS = 60_000;

const tables = {};
const rows = { ...FIRST };

/** Whether every word that is sought stands in one of the texts. */
function fits(words, texts) {
  if (!words.length) return true;
  const all = texts.filter(Boolean).join(" ").toLowerCase();
  return words.every((word) => all.includes(word));
}
const wordsOf = (form) => filter(form, "text").toLowerCase().split(/\s+/).filter(Boolean);

function callTexts(call) {
  return [call.callId, call.businessId, call.agent, call.ownNumber, call.otherNumber, call.plan, call.phase, call.account,
    call.carrier, ...Object.values(call.ids ?? {})];
}

// === made once ===

export function initial(state, redraw, acts) {
  const { openCall } = acts;
  initialRuns(state, acts);
  initialRecords(state, redraw, acts);
  const relabel = (label) => (element, item) => element.setAttribute("aria-label", label(item));
  const used = { name: "In use", cell: () => h("div", { class: "use" }, h("span"), meter("In use")), update: (cell, item) => {
    say(cell.firstElementChild, item.limit ? `${item.inUse ?? "?"} of ${item.limit}` : `${item.inUse ?? "?"}`);
    setMeter(cell.lastElementChild, item.inUse, item.limit);
    cell.lastElementChild.setAttribute("aria-label", `In use of ${item.id ?? item.name}`);
  } };
  const lastMinutes = { name: "Last 15 minutes", class: "spark", cell: () => h("div", { class: "over-time" }, h("div"), h("span")),
    update: (cell, item) => {
      drawLine(cell.firstElementChild, item);
      say(cell.lastElementChild, item.values ? `most ${number.format(mostOf(item.values, item.inUse))}` : "–");
    } };
  tables.businesses = table(byId("businesses"), "h-businesses", [
    { name: "Business", class: "name", cell: (item) => h("button", { type: "button", class: "plain", click: () => {
      byId("call-filters").elements.text.value = item().id;
      location.hash = "#calls";
      redraw();
    } }), update: (cell, item) => say(cell, item.id) },
    { name: "Plan", of: (item) => item.plan },
    used,
    lastMinutes,
  ], (item) => item.id, "No business is known, or none that you look for.");
  tables.limits = table(byId("limits"), "h-limits", [
    { name: "Limit", of: (item) => item.name },
    { name: "Counted per", of: (item) => item.per },
    { name: "Allows", of: (item) => item.allows },
    { name: "In use", of: (item) => item.held },
    lastMinutes,
    { name: "Comes from", class: "long", of: (item) => item.from },
  ], (item) => `${item.name} ${item.allows}`, "No limit is in force.");

  tables.kept = table(byId("kept"), "h-kept", [
    { name: "Limit", of: (one) => one.limit },
    { name: "Business", class: "name", of: (one) => one.business },
    { name: "Refused", of: (one) => ago(one.refusedAt) },
    { name: "Kept until", of: (one) => clock(one.keptUntil) },
  ], (one) => one.key, "No slot is kept.");

  const openLabel = (call) => `Open call ${call.callId} of ${call.businessId}`;
  tables.calls = table(byId("calls-list"), "h-calls", [
    { name: "Call", class: "id", cell: (item) => h("button", { type: "button", class: "plain", click: () => openCall(item().callId) }),
      update: (cell, call) => { say(cell, call.callId); relabel(openLabel)(cell, call); } },
    { name: "Business", class: "name", of: (call) => call.businessId },
    { name: "Direction", of: (call) => call.direction },
    { name: "Phase", of: phase, tone: (call) => (call.overLimit || call.unsettled ? "bad" : call.phase === "live" ? "good" : "") },
    { name: "Age", of: (call) => age(call.startedAt) },
    { name: "Last proof of life", of: (call) => `${ago(call.lastSeenAt) ?? "none"}, ${call.lastSeenBy ?? "?"}` },
    { name: "Look-up", of: (call) => lookUp(call), tone: (call) => (isNear(call) ? "warn" : "") },
    { name: "Origin", of: (call) => call.origin },
    { name: "To or from", of: (call) => call.otherNumber },
    { name: "Account", of: (call) => [call.account, call.carrier].filter(Boolean).join(" + ") },
  ], (call) => call.callId, "No call holds a slot, or none that you look for.");

  tables.replicas = table(byId("replicas-list"), "h-replicas", [
    { name: "Replica", class: "id", of: (one) => one.id },
    { name: "Host", of: (one) => `${one.host ?? "?"}, process ${one.process ?? "?"}` },
    { name: "Role", of: (one) => [one.leads ? "leader" : "follower", one.self ? "this one" : null].filter(Boolean).join(", ") },
    { name: "Version", of: (one) => one.version },
    { name: "Policy", of: (one) => one.policy && `${short(one.policy)} since ${clock(one.policySince)}`,
      tone: (one) => (state.parts.status?.policiesDiffer ? "warn" : "") },
    { name: "Up", of: (one) => age(one.startedAt) },
    { name: "Heard", of: (one) => ago(one.heardAt) },
  ], (one) => one.id, "This process has not told of itself yet.");

  for (const [name, form, list] of [["calls", "call-filters", "calls-list"], ["businesses", "business-filters", "businesses"]]) {
    byId(`${name}-more`).addEventListener("click", () => {
      const before = rows[name];
      rows[name] += ROWS;
      draw(state);
      // The button may be gone, and its focus with it: reading goes on with the first new row.
      byId(list).querySelectorAll("tbody tr")[before]?.querySelector("button")?.focus();
    });
    byId(form).addEventListener("submit", (event) => event.preventDefault());
    byId(form).addEventListener("input", () => { rows[name] = FIRST[name]; redraw(); });
  }
}

// === words ===

function phase(call) {
  const marks = [call.overLimit && "over the limit", call.unsettled && "outcome unknown", call.slots > 1 && `${call.slots} slots`];
  return [call.phase, ...marks.filter(Boolean)].join(", ");
}

const isNear = (call) => Boolean(call.deadlineAt) && Date.parse(call.deadlineAt) - time.now < NEAR_MS;

function lookUp(call) {
  if (!call.deadlineAt) return null;
  const left = Date.parse(call.deadlineAt) - time.now;
  return left > 0 ? `in ${span(left)}` : `due for ${span(-left)}`;
}

// === each time ===

export function draw(state) {
  time.now = Date.now() + state.offset;
  const { parts, you } = state;
  const open = parts.calls;
  byId("main").toggleAttribute("data-known", Boolean(open));
  say(byId("mode"), open?.mode === "observe" ? "observe: refuses nothing" : open?.mode ?? "");
  byId("mode").dataset.tone = open?.mode === "observe" ? "warn" : "good";
  show(byId("mode"), Boolean(open));
  for (const badge of document.querySelectorAll("[data-count]")) {
    const unknown = open && !open.known;
    const counts = { calls: unknown ? null : open?.open, runs: openRuns(parts), refusals: parts.refusals?.length ?? null, webhooks: failed(parts) };
    const count = counts[badge.dataset.count];
    say(badge, count === null && open ? "?" : count ? number.format(count) : "");
  }
  const own = you?.businesses;
  const bypass = parts.status?.bypass;
  const note = !you ? "" : [
    bypass ? `Bypass on until ${clock(bypass.until)}, by ${bypass.by}: ${bypass.reason}. Limits refuse nothing; every call is counted and recorded.` : "",
    own ? `This token shows ${own.length === 1 ? "one business" : `${own.length} businesses`}: ${own.join(", ")}. Figures of all, webhooks and replicas are not for it.` : "",
    mayChange(state) ? "" : you.name === "local"
      ? "You may look. To change something from here set admin.token_secret and use a token with scope operate, or use ringfence's commands."
      : "You may look. To hang up, release, replay, or pause a run, use a token with scope operate.",
  ].filter(Boolean).join(" ");
  say(byId("note"), note);
  show(byId("note"), Boolean(note));
  for (const part of ["limits-part", "webhooks-part", "state-part"]) show(byId(part), Boolean(parts.status));
  const views = { overview, calls: drawCalls, runs: drawRuns, refusals: drawRefusals, webhooks: drawWebhooks, replicas: drawReplicas };
  views[state.view]?.(state);
}

function troubles({ parts, calls }) {
  const found = [];
  const add = (tone, text, view) => found.push({ tone, text, view });
  const { status, webhooks } = parts;
  if (parts.calls && !parts.calls.known) add("bad", "The database does not answer. The calls shown are those of before.", "replicas");
  if (status) {
    if (status.bypass) add("bad", `Limits are bypassed until ${clock(status.bypass.until)} by ${status.bypass.by}: ${status.bypass.reason}`);
    if (!status.store.ok) add("bad", `The store takes no writes: ${status.store.error ?? "no reason given"}`, "replicas");
    if (status.store.journaled) add("warn", `${status.store.journaled} webhooks wait in the journal until the store takes writes.`, "replicas");
    const { standing } = status.gate;
    if (standing.degraded) add("warn", `The gate is degraded: ${standing.away ?? `it is decided by ${standing.mode}`}.`, "replicas");
    if (status.policiesDiffer) add("warn", "Replicas run different policies.", "replicas");
    if (status.draining) add("warn", "This process is stopping.", "replicas");
    const failedReload = status.policy?.lastFailedReload;
    if (failedReload) add("warn", `The config was not loaded at ${clock(failedReload.at)}: ${failedReload.reason}`, "replicas");
    for (const one of status.accounts) {
      if (one.sweepError) add("warn", `${one.name} cannot be asked about its calls: ${one.sweepError}`);
      if (one.limit && one.inUse >= one.limit) add("bad", `${one.name} is full: ${number.format(one.inUse)} of ${number.format(one.limit)}.`, "calls");
      else if (one.limit && one.inUse >= 0.8 * one.limit) add("warn", `${one.name} is nearly full: ${number.format(one.inUse)} of ${number.format(one.limit)}.`, "calls");
      if (one.overLimit) add("warn", `${one.overLimit} calls of ${one.name} are up over the limit.`, "calls");
      // Without the database nothing is known here.
      if (one.inUse !== null && one.providerLive > one.inUse) {
        add("warn", `${one.name} says ${one.providerLive} calls are up, ${one.inUse} are known here.`, "calls");
      }
    }
  }
  if (parts.calls?.known && (parts.refusals === null || parts.runs === null || webhooks?.parked === null || webhooks?.givenUp === null)) {
    add("bad", "The database answers in part: some lists are not known just now.", "replicas");
  }
  if (webhooks?.parked?.length) add("warn", `${webhooks.parked.length} webhooks could not be applied.`, "webhooks");
  if (webhooks?.givenUp?.length) add("warn", `${webhooks.givenUp.length} deliveries to your app were given up.`, "webhooks");
  let [unsettled, overdue] = [0, 0];
  for (const call of calls.values()) {
    if (call.unsettled) unsettled += 1;
    if (call.deadlineAt && time.now - Date.parse(call.deadlineAt) > NEAR_MS) overdue += 1;
  }
  if (unsettled) add("warn", `Of ${unsettled} calls it is not known whether they were dialled. They are looked up.`, "calls");
  if (overdue) add("warn", `${overdue} calls are due for a look-up for more than a minute.`, "calls");
  return found;
}

function overview(state) {
  const { parts } = state;
  const found = parts.calls ? troubles(state) : [];
  const fine = parts.calls && !found.length ? [{ tone: "good", text: "Nothing needs attention." }] : [];
  keep(byId("troubles"), [...found, ...fine], (one) => one.text, () => h("li", {}, h("span"), h("a", {}, "Show")), (item, one) => {
    item.dataset.tone = one.tone;
    say(item.firstElementChild, one.text);
    show(item.lastElementChild, Boolean(one.view));
    item.lastElementChild.setAttribute("href", `#${one.view ?? "overview"}`);
    item.lastElementChild.setAttribute("aria-label", `Show ${one.view ?? "overview"}: ${one.text}`);
  });
  const history = parts.history;
  const cards = [];
  if (parts.calls) {
    const { known, holding, open } = parts.calls;
    const gate = parts.status?.gate;
    cards.push({ key: "all", name: gate ? "All calls" : "Your calls", inUse: gate ? (gate.counted ? gate.calls : null) : known ? open : null,
      limit: globalLimit(parts.status), values: history?.all,
      more: !known ? "whose calls they are is not known just now" : holding === 1 ? "1 business with calls now" : `${number.format(holding)} businesses with calls now` });
  }
  for (const one of parts.status?.accounts ?? []) {
    const told = [
      one.provider !== one.name ? one.provider : null,
      one.providerLive !== null && one.providerLive !== undefined ? `provider says ${number.format(one.providerLive)}` : null,
      one.foreign ? `${one.foreign} not placed here` : null,
      one.sweptAt ? `asked ${ago(one.sweptAt)}` : one.canBeAsked ? "not asked yet" : "cannot be asked",
    ];
    cards.push({ key: `account ${one.name}`, name: one.name, inUse: one.inUse, limit: one.limit, values: history?.accounts?.[one.name],
      more: told.filter(Boolean).join(" · ") });
  }
  keep(byId("cards"), cards, (one) => one.key, () => h("li", { class: "card" },
    h("h2"), h("p", { class: "figure" }, h("span"), h("small")), meter("In use"), h("div", { class: "spark" }), h("p", { class: "more" })),
  (card, one) => {
    const [name, figure, bar, spark, more] = card.children;
    say(name, one.name);
    say(figure.firstElementChild, one.inUse === null || one.inUse === undefined ? "?" : number.format(one.inUse));
    say(figure.lastElementChild, one.limit ? ` of ${number.format(one.limit)} in use` : " in use, no limit");
    bar.setAttribute("aria-label", `In use: ${one.name}`);
    setMeter(bar, one.inUse, one.limit);
    drawLine(spark, one);
    say(more, [one.more, one.values ? `at most ${number.format(mostOf(one.values, one.inUse))} in 15 minutes` : null].filter(Boolean).join(" · "));
  });
  drawBusinesses(parts);
  if (parts.status) {
    tables.limits(limits(parts));
    tables.kept((parts.status.gate.kept ?? []).map((one, key) => ({ ...one, key })));
  }
}

/** Those with calls first, the others after them by their ids. */
function drawBusinesses({ businesses, calls, history, known }) {
  const inUse = businesses ?? [];
  const listed = new Set(inUse.map((one) => one.id));
  // Of further ones with calls it is not said what they hold.
  const isAll = (calls?.holding ?? 0) <= inUse.filter((one) => one.inUse).length;
  const idle = (known?.businesses ?? []).filter((one) => !listed.has(one.id)).map((one) => ({ ...one, inUse: isAll ? 0 : null }));
  const all = [...inUse, ...idle];
  const use = filter("business-filters", "use");
  const sought = wordsOf("business-filters");
  const found = all.filter((one) => (use !== "up" || one.inUse) && (use !== "full" || (one.inUse && (one.limit ?? null) !== null && one.inUse >= one.limit))
    && fits(sought, [one.id, one.plan]));
  const shown = found.slice(0, rows.businesses);
  const isNarrowed = sought.length > 0 || Boolean(use);
  const unsent = (known?.all ?? 0) - (known?.businesses?.length ?? 0);
  say(byId("businesses-said"), !businesses || !all.length ? "" : [
    `${number.format(shown.length)} of ${number.format(isNarrowed ? found.length : all.length)} ${isNarrowed ? "found " : ""}businesses shown`,
    isNarrowed ? `, ${number.format(all.length)} in all` : "",
    unsent > 0 ? `; ${number.format(unsent)} more are known: ringfence businesses list --search finds them` : "", ".",
  ].join(""));
  tables.businesses(businesses && shown.map((one) => ({ ...one, values: history?.businesses?.[one.id] })));
  show(byId("businesses-more"), Boolean(businesses) && found.length > shown.length);
}

/** The highest of what was counted every half minute, and of what is in use now. */
const mostOf = (values, now) => Math.max(now ?? 0, ...(values ?? []).map((value) => value ?? 0));

function drawLine(place, { values, limit }) {
  const drawn = JSON.stringify([values, limit]);
  if (place.drawn === drawn) return;
  place.drawn = drawn;
  place.replaceChildren(...(values ? [line(values, limit)] : []));
}

function globalLimit(status) {
  const all = status?.limits.find((one) => one.name === "global" && /at once$/.test(one.allows));
  return all ? Number.parseInt(all.allows, 10) : null;
}

/** Each limit with how much of it is held: for one that is counted per something, by whoever holds most. */
function limits({ status, businesses, history }) {
  const counted = Object.entries(status.gate.byLimit ?? {}).map(([key, count]) => [...key.split(/\|(.*)/s), count]);
  return status.limits.map((limit) => {
    const of = limit.name.startsWith("plan.")
      ? (businesses ?? []).filter((one) => `plan.${one.plan}` === limit.name && (one.own ?? null) === null).map((one) => [one.id, one.inUse])
      : counted.filter(([name, whose]) => name === limit.name || `${name}.${whose}` === limit.name)
        .map(([name, whose, , count]) => [name === limit.name ? whose : "", count]);
    const [whose, count] = of.reduce((most, one) => (one[1] > most[1] ? one : most), ["", 0]);
    const isRate = !/at once$/.test(limit.allows);
    const isKnown = limit.name.startsWith("plan.") ? Boolean(businesses) : status.gate.counted;
    const held = !isKnown ? "not known just now" : whose ? `${count} at most, by ${whose}` : String(count);
    return { ...limit, held: isRate ? null : held, inUse: isKnown ? count : null, values: isRate ? null : history?.limits?.[limit.name], limit: isRate ? null : Number.parseInt(limit.allows, 10) || null };
  });
}

// === calls ===

function drawCalls({ calls, parts }) {
  const all = [...calls.values()];
  const form = "call-filters";
  for (const name of ["phase", "direction", "origin", "account"]) {
    const values = all.flatMap((call) => (name === "account" ? [call.account, call.carrier] : [call[name]]));
    offer(byId(form).elements[name], values, (value) => h("option", { value }, value));
  }
  const sought = wordsOf(form);
  const wanted = ["phase", "direction", "origin", "account"].map((name) => [name, filter(form, name)]).filter(([, value]) => value);
  const found = all.filter((call) => wanted.every(([name, value]) => call[name] === value || (name === "account" && call.carrier === value))
    && fits(sought, callTexts(call)));
  const by = (key) => (a, b) => ((a[key] ?? "\uffff") < (b[key] ?? "\uffff") ? -1 : 1);
  const orders = { oldest: by("startedAt"), newest: (a, b) => by("startedAt")(b, a), silent: by("lastSeenAt"), deadline: by("deadlineAt"),
    business: (a, b) => a.businessId.localeCompare(b.businessId) || by("startedAt")(a, b) };
  found.sort(orders[filter(form, "sort")]);
  const hidden = (parts.calls?.open ?? 0) - (parts.calls?.shown ?? 0);
  const isOld = parts.calls && !parts.calls.known;
  say(byId("calls-said"), isOld && !all.length ? "" : `${isOld ? "The database does not answer; these are the calls of before. " : ""}${number.format(Math.min(rows.calls, found.length))} of ${number.format(found.length)} shown${
    found.length < all.length ? `, ${number.format(all.length)} open` : ""}${hidden > 0 ? `; ${number.format(hidden)} more are open: use the API` : ""}.`);
  tables.calls(isOld && !all.length ? null : found.slice(0, rows.calls));
  show(byId("calls-more"), found.length > rows.calls);
}

export function drawCall(shown, state) {
  time.now = Date.now() + state.offset;
  const { call } = shown;
  say(byId("call-title"), `Call ${call.callId}`);
  const isOver = call.phase === "ended";
  show(byId("call-acts"), mayChange(state) && !isOver);
  showAttributes(byId("call-attributes"), [
    ["Problem", shown.error],
    ["Business", call.businessId], ["Plan", call.plan], ["Phase", phase(call)], ["Outcome", call.outcome], ["Proof of its end", call.proof],
    ["Direction", call.direction], ["Origin", call.origin], ["Agent", call.agent], ["Own number", call.ownNumber],
    ["Other number", call.otherNumber], ["Account", [call.account, call.carrier].filter(Boolean).join(" + ")],
    ["Began", call.startedAt && `${clock(call.startedAt)}, ${ago(call.startedAt)}`], ["Answered", clock(call.answeredAt)],
    ["Ended", call.endedAt && `${clock(call.endedAt)}, ${ago(call.endedAt)}`],
    ["Last proof of life", call.lastSeenAt && `${ago(call.lastSeenAt)}, ${call.lastSeenBy}`], ["Look-up", isOver ? null : lookUp(call)],
    ...Object.entries(call.ids ?? {}),
  ]);
  const log = byId("said-log");
  const isAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  keep(byId("said"), shown.said, (one) => one.sequence, () => h("li", {}, h("b"), h("span")), (item, one) => {
    item.dataset.speaker = one.speaker;
    say(item.firstElementChild, one.speaker);
    say(item.lastElementChild, one.text);
  });
  if (isAtEnd) log.scrollTop = log.scrollHeight;
  show(log, shown.said.length > 0);
  show(byId("said-none"), shown.said.length === 0);
  say(byId("partial"), shown.partial ? `${shown.partial.speaker}: ${shown.partial.text} …` : "");
  show(byId("partial"), Boolean(shown.partial));
  const record = call.record;
  show(byId("record-part"), Boolean(record));
  if (record) {
    showAttributes(byId("record"), [
      ["Summary", record.transcript_summary], ["Length", record.call_duration_seconds !== null && record.call_duration_seconds !== undefined
        ? span(record.call_duration_seconds * 1000) : null],
      ["Cost", record.cost], ["Successful", record.call_successful], ["Recorded by", record.recorded_by], ["Problem", record.last_error],
    ]);
  }
}

// === replicas ===

function drawReplicas({ parts, you }) {
  const { status } = parts;
  if (!status) return;
  const { gate, store, policy } = status;
  showAttributes(byId("state"), [
    ["Version", you?.version ?? status.version], ["Mode", status.mode],
    ["Policy", `${short(policy.hash) || "none"}, generation ${policy.generation}, loaded ${ago(policy.loadedAt)}`],
    ["Last failed reload", policy.lastFailedReload && `${clock(policy.lastFailedReload.at)}: ${policy.lastFailedReload.reason}`],
    ["Store", `${store.backend}, ${store.ok ? "takes writes" : `does not answer: ${store.error}`}`], ["Store is at", store.path],
    ["Webhooks in the journal", store.journaled], ["Gate", `${gate.backend}, decided by ${gate.standing.mode}, epoch ${gate.standing.epoch}`],
    ["Gate is degraded", gate.standing.degraded ? gate.standing.away ?? "yes" : "no"], ["Releases that wait", gate.standing.waiting],
    ["Unknown businesses", status.unknownBusinesses],
  ]);
  tables.replicas(status.replicas);
}
