//! Name and label syntax, with the messages of k8s.io/apimachinery `pkg/util/validation`.
//!
//! Each check returns what is wrong, empty if nothing is.

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

const QUALIFIED_NAME: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const DNS1123_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const DNS1123_SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035_LABEL: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// Kubernetes' own path segment rule, for names of RBAC objects.
pub(crate) fn path_segment(name: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if name == "." || name == ".." {
        problems.push(format!("may not be '{name}'"));
    }
    for illegal in ['/', '%'] {
        if name.contains(illegal) {
            problems.push(format!("may not contain '{illegal}'"));
        }
    }
    problems
}

/// RFC 1123 label: lower case letters, digits and `-`, up to 63 bytes.
pub(crate) fn dns1123_label(name: &str) -> Vec<String> {
    let mut problems = length(name, LABEL_MAX);
    if !is_dns1123_label(name) {
        let text = if is_dns1123_subdomain(name) {
            "must not contain dots"
        } else {
            DNS1123_LABEL
        };
        problems.push(text.to_owned());
    }
    problems
}

/// RFC 1123 subdomain: labels joined by dots, up to 253 bytes.
pub(crate) fn dns1123_subdomain(name: &str) -> Vec<String> {
    let mut problems = length(name, SUBDOMAIN_MAX);
    if !is_dns1123_subdomain(name) {
        problems.push(DNS1123_SUBDOMAIN.to_owned());
    }
    problems
}

/// RFC 1035 label: as RFC 1123, but it starts with a letter.
pub(crate) fn dns1035_label(name: &str) -> Vec<String> {
    let mut problems = length(name, LABEL_MAX);
    let starts = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if !starts || !is_dns1123_label(name) {
        problems.push(DNS1035_LABEL.to_owned());
    }
    problems
}

/// Key of a label, an annotation or a taint: an optional DNS prefix, a slash, a name.
pub(crate) fn qualified_name(key: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let name = match key.split_once('/') {
        None => key,
        Some((_, rest)) if rest.contains('/') => {
            return vec![
                "a qualified name ".to_owned()
                    + QUALIFIED_NAME
                        .strip_prefix("name part ")
                        .unwrap_or(QUALIFIED_NAME)
                    + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
            ];
        }
        Some((prefix, name)) => {
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".to_owned());
            } else {
                problems.extend(
                    dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|text| format!("prefix part {text}")),
                );
            }
            name
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_MAX {
        problems.push(format!("name part must be no more than {LABEL_MAX} bytes"));
    }
    if !is_label_text(name) {
        problems.push(QUALIFIED_NAME.to_owned());
    }
    problems
}

/// Value of a label; may be empty.
pub(crate) fn label_value(value: &str) -> Vec<String> {
    let mut problems = length(value, LABEL_MAX);
    if !value.is_empty() && !is_label_text(value) {
        problems.push(LABEL_VALUE.to_owned());
    }
    problems
}

fn length(text: &str, max: usize) -> Vec<String> {
    if text.len() > max {
        vec![format!("must be no more than {max} bytes")]
    } else {
        Vec::new()
    }
}

fn is_dns1123_label(name: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.first().is_some_and(|b| alphanumeric(*b))
        && bytes.last().is_some_and(|b| alphanumeric(*b))
        && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
}

fn is_dns1123_subdomain(name: &str) -> bool {
    name.split('.').all(is_dns1123_label)
}

fn is_label_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}
