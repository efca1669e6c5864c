// A list that the server narrows: by what stands in a form, page by page, again when there is news.
import { byId } from "/page/dom.js";

/** Rows of a page. */
const PAGE = 100;
/** The form is asked about so long after its last change, in milliseconds. */
const AFTER_INPUT_MS = 250;
/** News let it ask again so seldom, in milliseconds. */
const AGAIN_MS = 2000;

/** `ask(path)` is a GET; `path(fields)` may put another path and list in place of what `of` and `list` say; `always` is asked unless a field says else. */
export function search({ form, of, list, ask, redraw, path, always = {} }) {
  const found = { items: null, next: null, error: "", answer: {} };
  let [timer, asked, at, news] = [0, 0, 0, null];
  const fields = () => Object.fromEntries([...new FormData(byId(form))]
    .map(([name, value]) => [name, value.trim()]).filter(([, value]) => value));
  const isActive = () => Object.keys(fields()).length > 0;

  async function load(after) {
    const mine = ++asked;
    at = Date.now();
    if (!isActive()) {
      Object.assign(found, { items: null, next: null, error: "", answer: {} });
      return redraw();
    }
    const query = new URLSearchParams({ ...always, ...fields(), limit: PAGE, ...(after ? { after } : {}) });
    try {
      const answer = await (path?.(fields(), ask) ?? ask(`${of}?${query}`));
      // Meanwhile it may have been asked about something else.
      if (mine !== asked) return;
      const items = answer[list];
      Object.assign(found, { items: after ? [...found.items, ...items] : items, next: answer.next ?? null, answer, error: "" });
    } catch (error) {
      if (mine !== asked) return;
      Object.assign(found, { items: null, next: null, answer: {}, error: error.message });
    }
    redraw();
  }

  byId(form).addEventListener("submit", (event) => {
    event.preventDefault();
    load();
  });
  byId(form).addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(load, AFTER_INPUT_MS);
  });
  return {
    found, fields, isActive, load,
    more: () => load(found.next),
    /** Asks again if this is not what was there the last time; not where more than a page is shown, which would jump. */
    tell(what) {
      if (what === news || Date.now() - at < AGAIN_MS) return;
      news = what;
      if (isActive() && (found.items?.length ?? 0) <= PAGE) load();
    },
  };
}
