// Bulk runs and their schedules.
import { byId, h, progress, say, setProgress, show, table } from "/page/dom.js";
import { mayChange, number, when } from "/page/words.js";

const tables = {};
const isOver = (run) => ["done", "canceled", "failed"].includes(run.state);
const named = (run) => run.name ?? run.runId;

/** What an operator may do to a run, in which state, and what is asked before. */
const ACTS = [
  { act: "pause", name: "Pause", of: (run) => run.state === "running" || (run.state === "paused" && run.resumeAt), reason: true,
    text: "Nothing more of it is dialled until it is resumed. Calls that are up go on." },
  { act: "resume", name: "Resume", of: (run) => run.state === "paused", text: "Its leads are dialled again when they are due." },
  { act: "cancel", name: "Cancel", of: (run) => !isOver(run), reason: true, danger: true,
    text: "What is queued is given up. Calls that are up go on. It cannot be resumed; ringfence runs retry calls those again that were not reached." },
];

function state(run) {
  const back = run.resumeAt ? `goes on at ${when(run.resumeAt)}` : null;
  return [run.state, run.reason, back].filter(Boolean).join(", ");
}

function nextDial({ state, counts, nextDialAt }) {
  if (state !== "running" || !counts?.queued) return null;
  return nextDialAt ? when(nextDialAt) : "as slots are free";
}

export function initialRuns(known, { act, confirmAct }) {
  const ask = (run, one) => confirmAct({
    title: `${one.name} ${named(run)}?`, yes: one.name, no: one.act === "cancel" ? "Keep it" : "Cancel", reason: one.reason,
    text: `${one.text}${one.act === "cancel" && run.counts ? ` ${number.format(run.counts.queued)} are queued.` : ""}`,
    run: async (reason) => {
      const done = await act(`/api/runs/${encodeURIComponent(run.runId)}/${one.act}`, reason ? { reason } : {});
      return `${named(run)} is ${done.state}`;
    },
  });
  const count = (run, of) => (run.counts ? number.format(of(run.counts)) : null);
  tables.runs = table(byId("runs-list"), "h-runs", [
    { name: "Run", class: "name", of: named },
    { name: "Business", class: "name", of: (run) => run.businessId },
    { name: "State", class: "long", of: state, tone: (run) => ({ running: "good", paused: "warn", failed: "bad" })[run.state] },
    { name: "Done", cell: () => h("div", { class: "use" }, h("span"), progress("Done")), update: (cell, run) => {
      say(cell.firstElementChild, run.counts ? `${number.format(run.done)} of ${number.format(run.leads)}` : `? of ${number.format(run.leads)}`);
      setProgress(cell.lastElementChild, run.done ?? 0, run.leads);
      cell.lastElementChild.setAttribute("aria-label", `Done of ${named(run)}`);
    } },
    { name: "Answered", of: (run) => count(run, (of) => of.completed) },
    { name: "Calling", of: (run) => count(run, (of) => of.dialing + of.calling) },
    { name: "Queued", of: (run) => count(run, (of) => of.queued) },
    { name: "Next dial", of: nextDial },
    { name: "Made", of: (run) => when(run.createdAt) },
    { name: "Act", hidden: true, class: "act", cell: (item) => h("div", { class: "row-acts" },
      ...ACTS.map((one) => h("button", { type: "button", class: one.danger ? "danger" : null, click: () => ask(item(), one) }, one.name))),
    update: (cell, run) => ACTS.forEach((one, n) => {
      show(cell.children[n], mayChange(known) && one.of(run));
      cell.children[n].setAttribute("aria-label", `${one.name} ${named(run)}`);
    }) },
  ], (run) => run.runId, "No bulk run was made.");
  tables.schedules = table(byId("schedules-list"), "h-schedules", [
    { name: "Schedule", class: "name", of: (one) => one.name },
    { name: "Business", class: "name", of: (one) => one.businessId },
    { name: "State", of: (one) => one.state, tone: (one) => (one.state === "paused" ? "warn" : "") },
    { name: "Times", of: (one) => `${one.schedule} (${one.timezone})` },
    { name: "Next firing", of: (one) => when(one.nextAt) },
    { name: "Last firing", of: (one) => when(one.lastFiringAt) },
    { name: "Problem", class: "long", of: (one) => one.error ?? one.note, tone: (one) => (one.error ? "warn" : "") },
  ], (one) => one.scheduleId, "No schedules.");
}

/** Runs that are not over. */
export const openRuns = ({ runs }) => (runs ? runs.filter((run) => !isOver(run)).length : null);

export function drawRuns({ parts: { runs, schedules } }) {
  say(byId("runs-said"), !runs ? "" : runs.length < 100 ? `${runs.length} shown.` : "The latest 100 are shown; ringfence runs list has all.");
  tables.runs(runs);
  tables.schedules(schedules);
}
