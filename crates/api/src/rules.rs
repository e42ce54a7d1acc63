//! What the API server refuses because it could never work: rules in CEL, the Common Expression Language.
//!
//! A rule says what holds for a good object; its message is an expression too, so that it can show the value and what
//! to do about it. [`crate::PodPoolSpec::ranges`] knows the same rules but those on changes, in the same words.
//! `kubetest/tests/admission.rs` asks both with the same table.
//!
//! A rule about one field has to hold also where another field is malformed, which has a rule of its own: hence the
//! many `isCIDR`. The lengths of lists are limited so that the API server's budget for rules suffices.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::ValidationRule;
use serde_json::{Value, json};

/// `isCIDR` and `cidr` know IPv6 too.
const OTHER_FAMILY: &str = "!isCIDR(self) || cidr(self).ip().family() != 4";

/// An entry of a list is an IPv4 range without host bits.
pub(crate) fn range() -> Vec<Value> {
    vec![
        json!({
            "rule": "isCIDR(self) && cidr(self).ip().family() == 4",
            "messageExpression": "'\"' + self + '\" is not an IPv4 range: expected a.b.c.d/length, for example 10.244.0.0/16'",
        }),
        json!({
            "rule": format!("{OTHER_FAMILY} || cidr(self) == cidr(self).masked()"),
            "messageExpression": "'%s has host bits set: the range it lies in is written %s'.format([self, string(cidr(self).masked())])",
        }),
    ]
}

/// An entry of a pool's `cidrs` is such a range, of a length that pods can use and with no address they can't have.
pub(crate) fn pod_range() -> Vec<Value> {
    let mut rules = range();
    rules.push(json!({
        "rule": format!("{OTHER_FAMILY} || (cidr(self).prefixLength() >= 8 && cidr(self).prefixLength() <= 30)"),
        "messageExpression": "self + ' is no pod CIDR: the prefix length has to be /8 to /30'",
    }));
    for (reserved, purpose) in weft_model::PodCidr::RESERVED {
        rules.push(json!({
            "rule": format!(
                "{OTHER_FAMILY} || !(cidr(self).containsCIDR('{reserved}') || cidr('{reserved}').containsCIDR(self))"
            ),
            "messageExpression": format!(
                "self + ' can\\'t be a pod CIDR: it overlaps {reserved} ({purpose}); choose a private range such as 10.244.0.0/16'"
            ),
        }));
    }
    rules
}

/// No two entries of a list share an address.
pub(crate) fn apart() -> Vec<Value> {
    vec![json!({
        "rule": "!self.all(c, isCIDR(c)) || !self.exists(a, self.exists(b, a != b && cidr(a).containsCIDR(b)))",
        "messageExpression": "self.map(a, self.filter(b, a != b && cidr(a).containsCIDR(b)).map(b, a + ' overlaps ' + b))\
            .filter(pairs, size(pairs) > 0)[0][0] + ': remove one of the two'",
    })]
}

/// One expression of a label selector.
pub(crate) fn selector_expression() -> Vec<Value> {
    vec![json!({
        "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
        "messageExpression": "'operator ' + self.operator + ' of ' + self.key + \
            (self.operator in ['In', 'NotIn'] ? ' needs values' : ' takes no values')",
    })]
}

/// The fields of a pool fit each other.
pub(crate) fn pool_spec() -> Vec<Value> {
    let well_formed = "self.cidrs.all(c, isCIDR(c) && cidr(c).ip().family() == 4)";
    vec![
        json!({
            "rule": format!(
                "self.ipam == 'node' || size(self.cidrs) == 0 || !{well_formed} || self.cidrs.exists(c, cidr(c).prefixLength() <= self.blockSize)"
            ),
            "messageExpression": "'a block of /%d is larger than %s, the largest range of the pool: use smaller blocks (a greater number) or a larger range'\
                .format([self.blockSize, self.cidrs.filter(c, cidr(c).prefixLength() == self.cidrs.map(d, cidr(d).prefixLength()).min())[0]])",
            "fieldPath": ".blockSize",
        }),
        json!({
            "rule": format!(
                "!has(self.excluded) || !{well_formed} || !self.excluded.all(e, isCIDR(e)) || \
                 self.excluded.all(e, self.cidrs.exists(c, cidr(c).containsCIDR(e) || cidr(e).containsCIDR(c)))"
            ),
            "messageExpression": "self.excluded.filter(e, !self.cidrs.exists(c, cidr(c).containsCIDR(e) || cidr(e).containsCIDR(c)))[0] + \
                ' excludes nothing: it lies in no entry of spec.cidrs; remove it or correct it'",
            "fieldPath": ".excluded",
        }),
        json!({
            "rule": "!has(self.retiring) || self.retiring.all(r, r in self.cidrs)",
            "messageExpression": "self.retiring.filter(r, !(r in self.cidrs))[0] + \
                ' is no entry of spec.cidrs: write it as it stands there, and remove it here first once it is drained'",
            "fieldPath": ".retiring",
        }),
        json!({
            "rule": "self.ipam != 'node' || !has(self.retiring) || size(self.retiring) == 0",
            "message": "a range can't retire under ipam node: a Node keeps its spec.podCIDRs for life; delete the nodes and add them again",
            "fieldPath": ".retiring",
        }),
    ]
}

/// A change of a pool takes nothing away that nodes have.
///
/// The status counts blocks by range. A range with blocks has to stay, whole: as it is, within a wider one, or cut into
/// entries no smaller than a block (one of which can then retire). The list at its end holds the addresses of a /0, a
/// /1 and so on, for CEL has no power function.
pub(crate) fn pool() -> Vec<ValidationRule> {
    let lost = "(r, r.allocated > 0 && isCIDR(r.cidr) && \
        !self.spec.cidrs.exists(c, cidr(c).containsCIDR(r.cidr)) && \
        self.spec.cidrs.filter(c, cidr(r.cidr).containsCIDR(c) && cidr(c).prefixLength() <= self.spec.blockSize)\
            .map(c, 4294967296 / SIZES[cidr(c).prefixLength()]).sum() != 4294967296 / SIZES[cidr(r.cidr).prefixLength()])";
    let sizes: Vec<String> = (0..=32).map(|bits| (1_u64 << bits).to_string()).collect();
    let lost = lost.replace("SIZES", &format!("[{}]", sizes.join(", ")));
    vec![
        ValidationRule {
            rule: format!(
                "self.spec.cidrs == oldSelf.spec.cidrs || !has(self.status) || !has(self.status.ranges) || \
                 !self.spec.cidrs.all(c, isCIDR(c)) || !self.status.ranges.exists{lost}"
            ),
            message_expression: Some(format!(
                "self.status.ranges.filter{lost}.map(r, '%s is in use: %d of its blocks belong to nodes; \
                 keep it in spec.cidrs, put it into spec.retiring and drain it until status.ranges counts 0'\
                 .format([r.cidr, r.allocated]))[0]"
            )),
            field_path: Some(".spec.cidrs".to_owned()),
            ..ValidationRule::default()
        },
        ValidationRule {
            rule: "self.spec.ipam == oldSelf.spec.ipam || !has(self.status) || self.status.allocated == 0"
                .to_owned(),
            message_expression: Some(
                "'ipam can\\'t become %s while %d blocks of the pool belong to nodes; make another pool for new nodes'\
                 .format([self.spec.ipam, self.status.allocated])"
                    .to_owned(),
            ),
            field_path: Some(".spec.ipam".to_owned()),
            ..ValidationRule::default()
        },
    ]
}

/// A NodeNetwork belongs to one registration of a node.
pub(crate) fn node_network_spec() -> Vec<Value> {
    vec![json!({
        "rule": "self.nodeUID == oldSelf.nodeUID",
        "message": "nodeUID is immutable: a node registered anew gets a NodeNetwork of its own",
        "fieldPath": ".nodeUID",
    })]
}
