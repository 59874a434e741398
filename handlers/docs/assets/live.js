// A plugin of Swagger UI: routes that answer with an event stream have a button that opens it and shows the events as they arrive.
// The stream is read with fetch, so that it is opened with the credential that the page has; an EventSource can send no header.
"use strict";

const EVENT_STREAM = "text/event-stream";
const MOST_EVENTS = 200;

// Reads server-sent events (WHATWG HTML, 9.2.6) from a response; calls `take` with {event, data} for each.
async function readEvents(response, take) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const found = { event: "message", data: [] };
      for (const line of block.split("\n")) {
        const [, name, text] = /^([^:]*):? ?(.*)$/.exec(line);
        if (name === "event") found.event = text;
        else if (name === "data") found.data.push(text);
      }
      if (found.data.length) take({ event: found.event, data: found.data.join("\n") });
    }
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// The request that "Execute" would send: with the parameters that are filled in, and the credential that the page has.
function requestOf(system, props) {
  const { specSelectors, authSelectors, fn } = system;
  const route = [props.path, props.method];
  const plain = (value) => (value ? value.toJS() : value);
  return fn.buildRequest({
    spec: specSelectors.specJsonWithResolvedSubtrees().toJS(),
    pathName: props.path,
    method: props.method,
    operationId: props.operation.get("operationId"),
    parameters: specSelectors.parameterValues(route).toJS(),
    securities: {
      authorized: plain(authSelectors.authorized()),
      definitions: plain(specSelectors.securityDefinitions()),
      specSecurity: plain(specSelectors.security()),
    },
    contextUrl: new URL(specSelectors.url(), document.baseURI).href,
    responseContentType: EVENT_STREAM,
  });
}

function liveButton(system) {
  const { createElement: make, useEffect, useRef, useState } = system.React;
  return function Live(props) {
    const [state, setState] = useState({ open: false, words: "", events: [] });
    const opened = useRef(null);
    const close = () => opened.current?.abort();
    useEffect(() => close, []);

    const say = (open, words) => setState((was) => ({ ...was, open, words }));
    const open = async () => {
      props.specActions.validateParams([props.path, props.method]);
      if (!props.specSelectors.validateBeforeExecute([props.path, props.method])) return;
      const controller = (opened.current = new AbortController());
      setState({ open: true, words: "Opening…", events: [] });
      let reason = null;
      try {
        const { url, method, headers } = requestOf(system, props);
        const response = await fetch(url, { method, headers, signal: controller.signal, cache: "no-store" });
        if (!response.ok) return say(false, `${response.status}: ${await response.text()}`);
        say(true, "Open. Events appear here as they arrive.");
        await readEvents(response, (one) => {
          if (one.event === "end") reason = JSON.parse(one.data).reason;
          setState((was) => ({ ...was, events: [{ ...one, at: new Date() }, ...was.events].slice(0, MOST_EVENTS) }));
        });
        say(false, reason === null ? "The connection was closed." : `The stream has ended: ${reason}.`);
      } catch (error) {
        say(false, controller.signal.aborted ? "Closed." : `The connection failed: ${error.message}`);
      }
    };

    const event = (one, at) =>
      make("li", { key: at, className: `live-event live-${one.event}` },
        make("span", { className: "live-name" }, one.event),
        make("time", null, one.at.toLocaleTimeString()),
        make("pre", null, pretty(one.data)));
    return make(system.React.Fragment, null,
      make("button", { className: "btn execute opblock-control__btn live-open", onClick: state.open ? close : open },
        state.open ? "Close the stream" : "Open the stream"),
      make("div", { className: "live", "aria-live": "polite" },
        make("p", { className: "live-words" }, state.words),
        make("ol", { className: "live-events" }, state.events.map((one, at) => event(one, state.events.length - at)))));
  };
}

// Named by page.js.
window.withLiveStreams = () => ({
  wrapComponents: {
    execute: (Execute, system) => {
      const Live = liveButton(system);
      return (props) => {
        const streams = props.operation.getIn(["responses", "200", "content", EVENT_STREAM]);
        return system.React.createElement(streams ? Live : Execute, props);
      };
    },
  },
});
