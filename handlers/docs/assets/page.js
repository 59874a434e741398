// Starts Swagger UI on this server's own document. Nothing is asked of any other server, and no credential is kept.
"use strict";

// Beside each path stands who may call it, in the words of the document.
const withAccess = () => ({
  wrapComponents: {
    OperationSummaryPath: (Path, system) => (props) => {
      const make = system.React.createElement;
      const operation = ["paths", props.operationProps.get("path"), props.operationProps.get("method")];
      const words = system.specSelectors.specJson().getIn([...operation, "x-gatepost-access", "words"]);
      const said = words ? make("span", { className: words === "public" ? "access open" : "access" }, words) : null;
      return make(system.React.Fragment, null, make(Path, props), said);
    },
  },
});

window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#page",
    presets: [SwaggerUIBundle.presets.apis],
    plugins: [withAccess, withLiveStreams, ...(window.withCallers ? [withCallers] : [])],
    layout: "BaseLayout",
    validatorUrl: null,
    persistAuthorization: false,
    queryConfigEnabled: false,
    tryItOutEnabled: true,
    displayRequestDuration: true,
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
  });
});
