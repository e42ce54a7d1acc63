//! Label and field selectors.
//!
//! Grammar of label selectors: k8s.io/apimachinery `pkg/labels`; of field selectors: `pkg/fields`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::error::ApiError;

/// A conjunction of requirements on labels; empty selects everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    In(BTreeSet<String>),
    NotIn(BTreeSet<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

/// A conjunction of `field=value` and `field!=value` terms.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct FieldSelector(Vec<FieldTerm>);

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FieldTerm {
    pub(crate) field: String,
    pub(crate) value: String,
    pub(crate) equal: bool,
}

// === impl LabelSelector ===

impl LabelSelector {
    /// Parses the `labelSelector` parameter.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        Parser {
            rest: text.trim(),
            whole: text,
        }
        .selector()
    }

    /// Reads a `metav1.LabelSelector` object (`matchLabels`, `matchExpressions`).
    pub(crate) fn from_object(selector: &Value) -> Option<Self> {
        let mut requirements = Vec::new();
        if let Some(labels) = selector.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                let value = value.as_str()?.to_owned();
                requirements.push(Requirement {
                    key: key.clone(),
                    test: Test::In(BTreeSet::from([value])),
                });
            }
        }
        for expression in selector
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let key = expression.get("key")?.as_str()?.to_owned();
            let values = || -> BTreeSet<String> {
                expression
                    .get("values")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                    .filter_map(|value| value.as_str().map(str::to_owned))
                    .collect()
            };
            let test = match expression.get("operator")?.as_str()? {
                "In" => Test::In(values()),
                "NotIn" => Test::NotIn(values()),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::Absent,
                _ => return None,
            };
            requirements.push(Requirement { key, test });
        }
        Some(Self(requirements))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn matches<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = get(&requirement.key);
            match &requirement.test {
                Test::In(values) => value.is_some_and(|value| values.contains(value)),
                Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Test::Exists => value.is_some(),
                Test::Absent => value.is_none(),
                Test::Greater(bound) => value
                    .and_then(|value| value.parse::<i64>().ok())
                    .is_some_and(|value| value > *bound),
                Test::Less(bound) => value
                    .and_then(|value| value.parse::<i64>().ok())
                    .is_some_and(|value| value < *bound),
            }
        })
    }
}

// === impl FieldSelector ===

impl FieldSelector {
    /// Parses the `fieldSelector` parameter; whether a field can be selected is the resource's affair.
    pub(crate) fn parse(text: &str) -> Result<Self, ApiError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let split = |operator: &str| term.split_once(operator);
            let (field, value, equal) = if let Some((field, value)) = split("!=") {
                (field, value, false)
            } else if let Some((field, value)) = split("==") {
                (field, value, true)
            } else if let Some((field, value)) = split("=") {
                (field, value, true)
            } else {
                return Err(ApiError::bad_request(format!(
                    "unable to find \" field selector requirement\": invalid selector: '{text}'; can't understand '{term}'"
                )));
            };
            terms.push(FieldTerm {
                field: field.to_owned(),
                value: unescape(value),
                equal,
            });
        }
        Ok(Self(terms))
    }

    pub(crate) fn terms(&self) -> &[FieldTerm] {
        &self.0
    }
}

fn split_unescaped(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in text.chars() {
        if c == ',' && !escaped {
            parts.push(String::new());
            continue;
        }
        escaped = c == '\\' && !escaped;
        parts.last_mut().expect("never empty").push(c);
    }
    parts
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
    }
    out
}

struct Parser<'a> {
    rest: &'a str,
    whole: &'a str,
}

// === impl Parser ===

impl Parser<'_> {
    fn selector(mut self) -> Result<LabelSelector, ApiError> {
        let mut requirements = Vec::new();
        while !self.rest.is_empty() {
            requirements.push(self.requirement()?);
            self.space();
            if self.rest.is_empty() {
                break;
            }
            if !self.eat(",") {
                return Err(self.error(&format!(
                    "found '{}', expected: ',' or 'end of string'",
                    self.rest
                )));
            }
            self.space();
            if self.rest.is_empty() {
                return Err(self.error("found '', expected: identifier after ','"));
            }
        }
        Ok(LabelSelector(requirements))
    }

    fn requirement(&mut self) -> Result<Requirement, ApiError> {
        self.space();
        if self.eat("!") {
            let key = self.key()?;
            return Ok(Requirement {
                key,
                test: Test::Absent,
            });
        }
        let key = self.key()?;
        self.space();
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Requirement {
                key,
                test: Test::Exists,
            });
        }
        let test = if self.eat("==") || self.eat("=") {
            Test::In(BTreeSet::from([self.value()?]))
        } else if self.eat("!=") {
            Test::NotIn(BTreeSet::from([self.value()?]))
        } else if self.eat(">") {
            Test::Greater(self.number()?)
        } else if self.eat("<") {
            Test::Less(self.number()?)
        } else if self.word("in") {
            Test::In(self.values()?)
        } else if self.word("notin") {
            Test::NotIn(self.values()?)
        } else {
            return Err(self.error(&format!(
                "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                self.rest.split_whitespace().next().unwrap_or_default()
            )));
        };
        Ok(Requirement { key, test })
    }

    fn key(&mut self) -> Result<String, ApiError> {
        self.space();
        let key = self.token();
        if key.is_empty() {
            return Err(self.error(&format!("found '{}', expected: identifier", self.rest)));
        }
        if let Some(problem) = crate::names::qualified_name(&key).first() {
            return Err(ApiError::bad_request(format!(
                "unable to parse requirement: <nil>: Invalid value: {key:?}: {problem}"
            )));
        }
        Ok(key)
    }

    fn value(&mut self) -> Result<String, ApiError> {
        self.space();
        let value = self.token();
        if let Some(problem) = crate::names::label_value(&value).first() {
            return Err(ApiError::bad_request(format!(
                "unable to parse requirement: values[0][]: Invalid value: {value:?}: {problem}"
            )));
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<i64, ApiError> {
        let value = self.value()?;
        value.parse().map_err(|_| {
            self.error(&format!(
                "values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
            ))
        })
    }

    fn values(&mut self) -> Result<BTreeSet<String>, ApiError> {
        self.space();
        if !self.eat("(") {
            return Err(self.error(&format!("found '{}', expected: '('", self.rest)));
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value()?);
            self.space();
            if self.eat(")") {
                return Ok(values);
            }
            if !self.eat(",") {
                return Err(self.error(&format!("found '{}', expected: ',' or ')'", self.rest)));
            }
        }
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self, word: &str) -> bool {
        let found = self
            .rest
            .strip_prefix(word)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_whitespace() || c == '('));
        if found {
            self.rest = &self.rest[word.len()..];
        }
        found
    }

    fn token(&mut self) -> String {
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || matches!(c, ',' | '(' | ')' | '=' | '!' | '<' | '>'))
            .unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        token.to_owned()
    }

    fn error(&self, why: &str) -> ApiError {
        ApiError::bad_request(format!("unable to parse requirement: {why} in {:?}", self.whole))
    }
}
