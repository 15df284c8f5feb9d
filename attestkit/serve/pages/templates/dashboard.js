// Refreshes the page: fetches it periodically and replaces changed nodes only, so that scroll
// position, focus, selections and folded parts are kept. The page also works without JavaScript.
"use strict";

(() => {
  const EVERY = 5000; // milliseconds between two fetches
  const PATIENCE = 10000; // timeout of a fetch in milliseconds
  const READERS = new Set(["open", "style"]); // attributes that the user changes by folding and resizing
  const state = document.getElementById("live-state");
  const toggle = document.getElementById("live-toggle");
  let paused = false;
  let timer = 0;
  let running = null; // AbortController of the pending fetch
  let seen = ""; // time of the last response

  const keyOf = (node) => (node.nodeType === 1 ? node.id || node.dataset.key || "" : "");
  const isOurs = (node) => node.nodeType === 1 && node.dataset.ours !== undefined;
  const alike = (a, b) =>
    a.nodeType === b.nodeType && a.nodeName === b.nodeName && keyOf(a) === keyOf(b);

  // Update `old` to `fresh`; highlight new elements with a key.
  function renew(old, fresh) {
    if (old.nodeType !== 1) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    for (const { name, value } of fresh.attributes) {
      if (!READERS.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    for (const { name } of [...old.attributes]) {
      if (!READERS.has(name) && !fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    if (old.nodeName === "TEXTAREA") {
      if (old.value !== fresh.value) {
        const top = old.scrollTop;
        old.value = fresh.value;
        old.scrollTop = top;
      }
      return;
    }
    renewChildren(old, fresh);
  }

  function renewChildren(old, fresh) {
    const keyed = new Map();
    for (const child of old.children) if (keyOf(child)) keyed.set(keyOf(child), child);
    const wanted = new Set([...fresh.children].map(keyOf));
    let at = old.firstChild;
    const skip = () => {
      while (at && isOurs(at)) at = at.nextSibling;
    };
    for (const next of [...fresh.childNodes]) {
      skip();
      // Remove vanished nodes first, so that the others need not move.
      while (at && keyOf(at) && !wanted.has(keyOf(at))) {
        const gone = at;
        at = at.nextSibling;
        gone.remove();
        skip();
      }
      const known = keyOf(next) ? keyed.get(keyOf(next)) : at;
      keyed.delete(keyOf(next));
      if (known && alike(known, next)) {
        if (known === at) at = at.nextSibling;
        else old.insertBefore(known, at);
        renew(known, next);
      } else {
        const added = document.importNode(next, true);
        if (keyOf(added)) added.classList.add("fresh");
        old.insertBefore(added, at);
      }
    }
    skip();
    while (at) {
      const gone = at;
      at = at.nextSibling;
      if (!isOurs(gone)) gone.remove();
    }
  }

  function say(text, kind) {
    if (state.textContent !== text) state.textContent = text;
    state.className = kind ? `state ${kind}` : "state";
  }

  function lost(reason) {
    say(`Lost the server (${reason}); as of ${seen}`, "lost");
  }

  async function refresh() {
    clearTimeout(timer);
    if (paused || document.hidden || running) return;
    running = new AbortController();
    const patience = setTimeout(() => running.abort(), PATIENCE);
    try {
      const response = await fetch(location.pathname, {
        cache: "no-store",
        credentials: "same-origin",
        signal: running.signal,
      });
      if (response.ok) take(await response.text());
      else lost(`status ${response.status}`);
    } catch (error) {
      if (!paused && !document.hidden) lost(error.name === "AbortError" ? "no answer" : "no connection");
    } finally {
      clearTimeout(patience);
      running = null;
      if (!paused && !document.hidden) timer = setTimeout(refresh, EVERY);
    }
  }

  function take(text) {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    if (fresh.title !== document.title) {
      lost("another page");
      return;
    }
    const place = document.getElementById("content");
    renew(place, fresh.getElementById("content"));
    renew(document.getElementById("foot"), fresh.getElementById("foot"));
    offerCopies(place);
    heard();
  }

  function heard() {
    seen = document.querySelector("#foot time").textContent;
    say("Live", "");
  }

  function stop() {
    clearTimeout(timer);
    if (running) running.abort();
  }

  // Add a copy button to each value with data-copy.
  function offerCopies(place) {
    for (const value of place.querySelectorAll("[data-copy]")) {
      if (value.nextElementSibling?.dataset.ours !== undefined) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "copy";
      button.dataset.ours = "";
      button.textContent = "Copy";
      button.setAttribute("aria-label", `Copy ${value.dataset.copy}`);
      button.addEventListener("click", () => copy(value.textContent, button));
      value.after(button);
    }
  }

  async function copy(text, button) {
    let done = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      done = copyOldWay(text); // the clipboard API needs HTTPS or localhost
    }
    button.focus();
    button.textContent = done ? "Copied" : "Not copied";
    setTimeout(() => {
      button.textContent = "Copy";
    }, 1500);
  }

  function copyOldWay(text) {
    const field = document.createElement("textarea");
    field.value = text;
    field.className = "skip";
    field.dataset.ours = "";
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }

  toggle.addEventListener("click", () => {
    paused = !paused;
    toggle.textContent = paused ? "Resume" : "Pause";
    if (paused) {
      stop();
      say("Paused", "paused");
    } else {
      say("Live", "");
      refresh();
    }
  });
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : refresh()));

  document.getElementById("live").hidden = false;
  offerCopies(document.getElementById("content"));
  heard();
  timer = setTimeout(refresh, EVERY);
})();
