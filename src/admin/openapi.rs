//! The OpenAPI 3.1 document of `listen.admin`, made of the routes ([`api`](super::api)).

use serde_json::{Map, Value, json};

use super::api::{ApiRoute, Body, Needs, ROUTES, Shape};
use super::schemas::SCHEMAS;

/// The document.
pub fn document() -> Value {
    let mut paths = Map::new();
    for route in ROUTES {
        let path = route.path.replace("+}", "}");
        let at = paths.entry(path).or_insert_with(|| json!({}));
        at[route.method.to_ascii_lowercase()] = operation(route);
    }
    let schemas: Map<String, Value> =
        SCHEMAS.iter().map(|(name, about, fields)| ((*name).to_owned(), described(schema(fields), about))).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "ringfence: listen.admin",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What operators and their programs use. Over the Unix socket, and over loopback where no admin.token_secret is set, no token is needed.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {
                "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                "description": "ringfence token --scope metrics|read|operate",
            }},
        },
    })
}

fn described(mut schema: Value, about: &str) -> Value {
    schema["description"] = about.into();
    schema
}

fn operation(route: &ApiRoute) -> Value {
    let mut operation =
        json!({"operationId": operation_id(route), "summary": route.about, "responses": responses(route)});
    let parameters: Vec<Value> = path_parameters(route.path)
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}}))
        .chain(route.query.iter().map(
            |(name, kind, about)| json!({"name": name, "in": "query", "description": about, "schema": schema(kind)}),
        ))
        .collect();
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = route.body {
        operation["requestBody"] = request_body(body);
    }
    // Without a secret there are no tokens: an empty requirement stands for loopback and the socket.
    let (security, scope) = match route.needs {
        Needs::Nothing => (json!([]), None),
        Needs::Scrape => (json!([{}, {"token": ["metrics"]}]), None),
        Needs::Scope(scope) | Needs::AllBusinesses(scope) => (json!([{"token": [scope.as_str()]}, {}]), Some(scope)),
    };
    operation["security"] = security;
    if let Some(scope) = scope {
        let of_all = if matches!(route.needs, Needs::AllBusinesses(_)) { ", of all businesses" } else { "" };
        operation["description"] = format!("Needs the scope `{}`{of_all}.", scope.as_str()).into();
    }
    operation
}

/// `GET /api/calls/{id}` is `get_api_calls_id`.
fn operation_id(route: &ApiRoute) -> String {
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    std::iter::once(route.method.to_ascii_lowercase().as_str()).chain(words).collect::<Vec<_>>().join("_")
}

fn path_parameters(path: &'static str) -> impl Iterator<Item = &'static str> {
    path.split('/').filter_map(|part| Some(part.strip_prefix('{')?.trim_end_matches(['+', '}'])))
}

fn request_body(body: Body) -> Value {
    let content: Map<String, Value> = body
        .kinds
        .iter()
        .map(|kind| {
            let schema = if *kind == "application/json" { schema(body.schema) } else { json!({"type": "string"}) };
            ((*kind).to_owned(), json!({"schema": schema}))
        })
        .collect();
    json!({"required": body.required, "content": content})
}

fn responses(route: &ApiRoute) -> Value {
    let mut all = Map::new();
    for (status, shape) in route.answers {
        all.insert(status.to_string(), response(*shape));
    }
    // What every route may answer.
    let error = || response(Shape::Json("Error"));
    let mut also = vec![503];
    if route.needs != Needs::Nothing {
        also.extend([401, 403]);
    }
    if route.body.is_some() || !route.query.is_empty() || route.path.contains('{') {
        also.extend([400, 413]);
    }
    if route.path.contains('{') || !route.query.is_empty() {
        also.push(404);
    }
    if matches!(route.needs, Needs::Scope(_) | Needs::AllBusinesses(_)) {
        also.push(500);
    }
    if route.path.ends_with("/hangup") {
        also.push(502);
    }
    for status in also {
        all.entry(status.to_string()).or_insert_with(error);
    }
    all.into()
}

fn response(shape: Shape) -> Value {
    match shape {
        Shape::Json(name) => {
            let about = SCHEMAS.iter().find(|(known, ..)| *known == name).map_or("", |(_, about, _)| about);
            json!({"description": about, "content": {"application/json": {"schema": reference(name)}}})
        }
        Shape::Empty => json!({"description": "Done."}),
        Shape::Other(kinds) => {
            let content: Map<String, Value> =
                kinds.iter().map(|kind| ((*kind).to_owned(), json!({"schema": {"type": "string"}}))).collect();
            json!({"description": "As its media type says.", "content": content})
        }
    }
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A type, or an object with fields in the notation of [`SCHEMAS`].
pub(super) fn schema(written: &str) -> Value {
    if !written.contains(':') {
        return kind(written);
    }
    let (mut properties, mut required) = (Map::new(), Vec::new());
    for field in written.split(',').map(str::trim) {
        if let Some(other) = field.strip_prefix('+') {
            let other = SCHEMAS.iter().find(|(name, ..)| *name == other).map_or(Value::Null, |(.., of)| schema(of));
            properties.extend(other["properties"].as_object().cloned().unwrap_or_default());
            required.extend(other["required"].as_array().cloned().unwrap_or_default());
            continue;
        }
        let (name, of) = field.split_once(':').unwrap_or((field, "any"));
        let key = name.trim_end_matches('~');
        properties.insert(key.to_owned(), kind(of));
        if key == name {
            required.push(key.into());
        }
    }
    json!({"type": "object", "properties": properties, "required": required})
}

fn kind(word: &str) -> Value {
    if let Some(inner) = word.strip_suffix('?') {
        return json!({"anyOf": [kind(inner), {"type": "null"}]});
    }
    if let Some(inner) = word.strip_suffix("[]") {
        return json!({"type": "array", "items": kind(inner)});
    }
    if let Some(inner) = word.strip_suffix("{}") {
        return json!({"type": "object", "additionalProperties": kind(inner)});
    }
    match word.strip_prefix('#') {
        Some(name) => reference(name),
        None if word == "any" => json!({}),
        None if word == "time" => json!({"type": "string", "format": "date-time"}),
        None => json!({"type": word}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` in a value.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|one| references(one, found));
            }
            Value::Array(list) => list.iter().for_each(|one| references(one, found)),
            _ => {}
        }
    }

    #[test]
    fn what_the_document_refers_to_is_in_it() {
        let document = document();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100);
        for one in found {
            let at = one.strip_prefix('#').unwrap();
            assert!(document.pointer(at).is_some(), "{one}");
        }
        for route in ROUTES {
            for (_, shape) in route.answers {
                assert!(
                    !matches!(shape, Shape::Json(name) if !SCHEMAS.iter().any(|(known, ..)| known == name)),
                    "{route:?}"
                );
            }
        }
    }

    #[test]
    fn operations_have_names_of_their_own() {
        let mut names: Vec<String> = ROUTES.iter().map(operation_id).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn a_schema_is_what_is_written() {
        assert_eq!(
            schema("a:string, b~:#Call[], c:time?, d:integer{}"),
            json!({"type": "object", "required": ["a", "c", "d"], "properties": {
                "a": {"type": "string"},
                "b": {"type": "array", "items": {"$ref": "#/components/schemas/Call"}},
                "c": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
                "d": {"type": "object", "additionalProperties": {"type": "integer"}},
            }})
        );
        assert_eq!(schema("+Word, more:any")["required"], json!(["status", "more"]));
    }
}
