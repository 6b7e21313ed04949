//! How many alternatives the compiler of a JSON schema may have to write out: where parts of a schema must hold together
//! (`allOf`, or `anyOf` beside a `$ref`), it merges each alternative of one with each of the others.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Whether no place of `schema` has more than `max` alternatives to merge.
pub(super) fn is_bounded(schema: &Value, max: u64) -> bool {
    let mut counter = Counter { root: schema, of_refs: HashMap::new() };
    let mut rest = vec![schema];
    while let Some(value) = rest.pop() {
        match value {
            Value::Object(fields) => {
                if merges(fields) && counter.alternatives(value) > max {
                    return false;
                }
                rest.extend(fields.values());
            }
            Value::Array(items) => rest.extend(items),
            _ => {}
        }
    }
    true
}

/// Whether several parts must hold together here.
fn merges(fields: &Map<String, Value>) -> bool {
    let all_of = fields.get("allOf").and_then(Value::as_array).map_or(0, Vec::len);
    let parts = ["anyOf", "oneOf", "enum", "const", "$ref"].iter().filter(|key| fields.contains_key(**key)).count();
    let own = ["type", "properties", "items", "prefixItems", "additionalProperties", "required"];
    all_of + parts + usize::from(own.iter().any(|key| fields.contains_key(*key))) > 1
}

struct Counter<'a> {
    root: &'a Value,
    /// Of the targets of references; 1 while one is being counted, since what refers to itself is not written out.
    of_refs: HashMap<&'a str, u64>,
}

impl<'a> Counter<'a> {
    /// An upper bound; inside of a place its widest property counts, as properties are merged one by one.
    fn alternatives(&mut self, schema: &'a Value) -> u64 {
        let Value::Object(fields) = schema else { return 1 };
        let mut product = 1_u64;
        let mut widest = 1;
        for (key, value) in fields {
            match (key.as_str(), value) {
                ("anyOf" | "oneOf", Value::Array(options)) => {
                    let sum = options.iter().fold(0_u64, |sum, option| sum.saturating_add(self.alternatives(option)));
                    product = product.saturating_mul(sum.max(1));
                }
                ("allOf", Value::Array(parts)) => {
                    for part in parts {
                        product = product.saturating_mul(self.alternatives(part));
                    }
                }
                ("enum" | "type", Value::Array(options)) => {
                    product = product.saturating_mul(options.len().max(1) as u64);
                }
                ("$ref", Value::String(target)) => product = product.saturating_mul(self.of_target(target)),
                ("properties" | "patternProperties", Value::Object(properties)) => {
                    for property in properties.values() {
                        widest = self.alternatives(property).max(widest);
                    }
                }
                ("prefixItems", Value::Array(items)) => {
                    for item in items {
                        widest = self.alternatives(item).max(widest);
                    }
                }
                ("items" | "additionalProperties", item) => widest = self.alternatives(item).max(widest),
                _ => {}
            }
        }
        product.saturating_mul(widest)
    }

    fn of_target(&mut self, target: &'a str) -> u64 {
        if let Some(count) = self.of_refs.get(target) {
            return *count;
        }
        self.of_refs.insert(target, 1);
        let found = target.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let count = found.map_or(1, |schema| self.alternatives(schema));
        self.of_refs.insert(target, count);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ordinary_schemas_are_bounded_whatever_their_size() {
        let names: Vec<String> = (0..500).map(|i| format!("n{i}")).collect();
        let schema = json!({
            "$defs": {"Kind": {"enum": names}, "Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}},
            "type": "object",
            "properties": {"kind": {"allOf": [{"$ref": "#/$defs/Kind"}], "description": "a"}, "node": {"$ref": "#/$defs/Node"}},
        });
        assert!(is_bounded(&schema, 1000));
        let level = |inner: Value| json!({"anyOf": [{"type": "object", "properties": {"a": inner}}, {"type": "null"}]});
        assert!(is_bounded(&(0..20).fold(json!(true), |inner, _| level(inner)), 1000), "nothing is merged");
    }

    #[test]
    fn products_of_alternatives_are_seen_through_references_and_properties() {
        let two = |i: usize| json!({"anyOf": [{"required": [format!("a{i}")]}, {"required": [format!("b{i}")]}]});
        let parts: Vec<Value> = (0..24).map(two).collect();
        assert!(!is_bounded(&json!({"allOf": parts}), 1000));
        let inside: Vec<Value> = (0..24).map(|i| json!({"properties": {"p": two(i)}})).collect();
        assert!(!is_bounded(&json!({"items": {"allOf": inside}}), 1000));
        let refs: Vec<Value> = (0..24).map(|_| json!({"$ref": "#/$defs/two"})).collect();
        assert!(!is_bounded(&json!({"$defs": {"two": two(0)}, "allOf": refs}), 1000));
    }
}
