"""HTTP over a service: routes, bodies, limits, the OpenAPI document, the page, the process."""
