// Times, counts and codes as a person reads them, and what the views share.
import { byId, span } from "/page/dom.js";

/** What the server's clock says, as far as is known here. */
export const time = { now: Date.now() };
/** Farther away than this a time has its date. */
const DAY_MS = 12 * 3_600_000;

export const age = (at) => (at ? span(time.now - Date.parse(at)) : null);
export const ago = (at) => (at ? `${age(at)} ago` : null);
export const clock = (at) => (at ? new Date(at).toLocaleTimeString([], { hour12: false }) : null);
/** A time of the day; with its date where that is not today's. */
export const when = (at) => (!at ? null : Math.abs(Date.parse(at) - time.now) < DAY_MS ? clock(at)
  : new Date(at).toLocaleString([], { dateStyle: "medium", timeStyle: "short", hour12: false }));
export const number = new Intl.NumberFormat("en");
export const words = (code) => (code ?? "").toLowerCase().replaceAll("_", " ");
export const short = (hash) => String(hash ?? "").slice(0, 12);
export const filter = (form, name) => byId(form).elements[name].value.trim();
export const mayChange = (state) => state.you?.scope === "operate";

/** Puts these values into a list of choices, whose first one stays, and so does what is chosen. */
export function offer(select, values, make) {
  const wanted = [...new Set(values.filter(Boolean))];
  const chosen = select.value;
  if (chosen && !wanted.includes(chosen)) wanted.push(chosen);
  wanted.sort();
  const there = [...select.options].slice(1).map((option) => option.value);
  if (wanted.join("\n") === there.join("\n")) return;
  select.replaceChildren(select.options[0], ...wanted.map(make));
  select.value = chosen;
}
