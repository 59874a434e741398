// Starts Swagger UI on this server's own document. Nothing is asked of any other server, and no credential is kept.
window.addEventListener("load", () => {
  window.ui = SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#page",
    presets: [SwaggerUIBundle.presets.apis],
    layout: "BaseLayout",
    validatorUrl: null,
    persistAuthorization: false,
    queryConfigEnabled: false,
    tryItOutEnabled: true,
    showExtensions: false,
    displayRequestDuration: true,
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    oauth2RedirectUrl: undefined,
  });
});
