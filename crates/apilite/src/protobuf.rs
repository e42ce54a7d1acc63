//! Request bodies in Kubernetes' protobuf encoding.
//!
//! The generated Go clients, and so the `kubectl create …` and `kubectl drain` commands, send built-in
//! types only in it. What they send is understood: the messages below. A field that isn't among them
//! is refused rather than lost. Answers are always JSON, which those clients accept.
//!
//! Envelope: k8s.io/apimachinery `pkg/runtime/serializer/protobuf` (the four bytes `k8s\0`, then a
//! `runtime.Unknown`). Field numbers: the `generated.proto` of each API group.

use std::collections::HashMap;
use std::sync::OnceLock;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::defaults::base64;
use crate::error::ApiError;

const MAGIC: &[u8] = b"k8s\0";

/// Messages, one a line: the name, then `number:field=type` for each field.
///
/// Types are `s` text, `y` bytes, `b` flag, `i` integer, or a message; `*` before one repeats it, `%`
/// makes it the values of a map with text keys, `?` keeps a zero, which otherwise means absent. A
/// field called `-` is merged into the message around it, a type `_` is skipped.
const MESSAGES: &str = "
ObjectMeta 1:name=s 2:generateName=s 3:namespace=s 4:selfLink=s 5:uid=s 6:resourceVersion=s 7:generation=i 8:creationTimestamp=Time 9:deletionTimestamp=Time 10:deletionGracePeriodSeconds=?i 11:labels=%s 12:annotations=%s 13:ownerReferences=*OwnerReference 14:finalizers=*s 17:managedFields=_
OwnerReference 1:kind=s 3:name=s 4:uid=s 5:apiVersion=s 6:controller=?b 7:blockOwnerDeletion=?b
LabelSelector 1:matchLabels=%s 2:matchExpressions=*LabelSelectorRequirement
LabelSelectorRequirement 1:key=s 2:operator=s 3:values=*s
DeleteOptions 1:gracePeriodSeconds=?i 2:preconditions=Preconditions 3:orphanDependents=?b 4:propagationPolicy=s 5:dryRun=*s 6:ignoreStoreReadErrorWithClusterBreakingPotential=b
Preconditions 1:uid=s 2:resourceVersion=s
Binding 1:metadata=ObjectMeta 2:target=ObjectReference
ConfigMap 1:metadata=ObjectMeta 2:data=%s 3:binaryData=%y 4:immutable=?b
Secret 1:metadata=ObjectMeta 2:data=%y 3:type=s 4:stringData=%s 5:immutable=?b
Namespace 1:metadata=ObjectMeta 2:spec=NamespaceSpec 3:status=_
NamespaceSpec 1:finalizers=*s
ServiceAccount 1:metadata=ObjectMeta 2:secrets=*ObjectReference 3:imagePullSecrets=*LocalObjectReference 4:automountServiceAccountToken=?b
ObjectReference 1:kind=s 2:namespace=s 3:name=s 4:uid=s 5:apiVersion=s 6:resourceVersion=s 7:fieldPath=s
LocalObjectReference 1:name=s
Service 1:metadata=ObjectMeta 2:spec=ServiceSpec 3:status=_
ServiceSpec 1:ports=*ServicePort 2:selector=%s 3:clusterIP=s 4:type=s 5:externalIPs=*s 7:sessionAffinity=s 8:loadBalancerIP=s 9:loadBalancerSourceRanges=*s 10:externalName=s 11:externalTrafficPolicy=s 12:healthCheckNodePort=i 13:publishNotReadyAddresses=b 17:ipFamilyPolicy=s 18:clusterIPs=*s 19:ipFamilies=*s 20:allocateLoadBalancerNodePorts=?b 21:loadBalancerClass=s 22:internalTrafficPolicy=s 23:trafficDistribution=s
ServicePort 1:name=s 2:protocol=s 3:port=i 4:targetPort=IntOrString 5:nodePort=i 6:appProtocol=s
ResourceQuota 1:metadata=ObjectMeta 2:spec=ResourceQuotaSpec 3:status=_
ResourceQuotaSpec 1:hard=%Quantity 2:scopes=*s
Event 1:metadata=ObjectMeta 2:involvedObject=ObjectReference 3:reason=s 4:message=s 5:source=EventSource 6:firstTimestamp=Time 7:lastTimestamp=Time 8:count=i 9:type=s 10:eventTime=Time 12:action=s 14:reportingComponent=s 15:reportingInstance=s
EventSource 1:component=s 2:host=s
Pod 1:metadata=ObjectMeta 2:spec=PodSpec 3:status=_
PodTemplateSpec 1:metadata=ObjectMeta 2:spec=PodSpec
PodSpec 2:containers=*Container 3:restartPolicy=s 4:terminationGracePeriodSeconds=?i 5:activeDeadlineSeconds=?i 6:dnsPolicy=s 7:nodeSelector=%s 8:serviceAccountName=s 9:serviceAccount=s 10:nodeName=s 11:hostNetwork=b 12:hostPID=b 13:hostIPC=b 14:securityContext=PodSecurityContext 15:imagePullSecrets=*LocalObjectReference 16:hostname=s 17:subdomain=s 19:schedulerName=s 20:initContainers=*Container 21:automountServiceAccountToken=?b 22:tolerations=*Toleration 24:priorityClassName=s 25:priority=?i 30:enableServiceLinks=?b
PodSecurityContext 2:runAsUser=?i 3:runAsNonRoot=?b 5:fsGroup=?i 6:runAsGroup=?i
Toleration 1:key=s 2:operator=s 3:value=s 4:effect=s 5:tolerationSeconds=?i
Container 1:name=s 2:image=s 3:command=*s 4:args=*s 5:workingDir=s 6:ports=*ContainerPort 7:env=*EnvVar 8:resources=ResourceRequirements 9:volumeMounts=*VolumeMount 13:terminationMessagePath=s 14:imagePullPolicy=s 15:securityContext=SecurityContext 16:stdin=b 17:stdinOnce=b 18:tty=b 19:envFrom=*EnvFromSource 20:terminationMessagePolicy=s
SecurityContext 2:privileged=?b 4:runAsUser=?i 5:runAsNonRoot=?b 6:readOnlyRootFilesystem=?b 7:allowPrivilegeEscalation=?b 8:runAsGroup=?i
ContainerPort 1:name=s 2:hostPort=i 3:containerPort=i 4:protocol=s 5:hostIP=s
EnvVar 1:name=s 2:value=s 3:valueFrom=EnvVarSource
EnvVarSource 1:fieldRef=ObjectFieldSelector 3:configMapKeyRef=KeySelector 4:secretKeyRef=KeySelector
ObjectFieldSelector 1:apiVersion=s 2:fieldPath=s
KeySelector 1:-=LocalObjectReference 2:key=s 3:optional=?b
EnvFromSource 1:prefix=s 2:configMapRef=EnvSource 3:secretRef=EnvSource
EnvSource 1:-=LocalObjectReference 2:optional=?b
ResourceRequirements 1:limits=%Quantity 2:requests=%Quantity
VolumeMount 1:name=s 2:readOnly=b 3:mountPath=s 4:subPath=s 5:mountPropagation=s 6:subPathExpr=s
Deployment 1:metadata=ObjectMeta 2:spec=DeploymentSpec 3:status=_
DeploymentSpec 1:replicas=?i 2:selector=LabelSelector 3:template=PodTemplateSpec 4:strategy=DeploymentStrategy 5:minReadySeconds=i 6:revisionHistoryLimit=?i 7:paused=b 9:progressDeadlineSeconds=?i
DeploymentStrategy 1:type=s 2:rollingUpdate=RollingUpdateDeployment
RollingUpdateDeployment 1:maxUnavailable=IntOrString 2:maxSurge=IntOrString
Job 1:metadata=ObjectMeta 2:spec=JobSpec 3:status=_
JobSpec 1:parallelism=?i 2:completions=?i 3:activeDeadlineSeconds=?i 4:selector=LabelSelector 5:manualSelector=?b 6:template=PodTemplateSpec 7:backoffLimit=?i 8:ttlSecondsAfterFinished=?i 9:completionMode=s 10:suspend=?b
CronJob 1:metadata=ObjectMeta 2:spec=CronJobSpec 3:status=_
CronJobSpec 1:schedule=s 2:startingDeadlineSeconds=?i 3:concurrencyPolicy=s 4:suspend=?b 5:jobTemplate=JobTemplateSpec 6:successfulJobsHistoryLimit=?i 7:failedJobsHistoryLimit=?i 8:timeZone=s
JobTemplateSpec 1:metadata=ObjectMeta 2:spec=JobSpec
Ingress 1:metadata=ObjectMeta 2:spec=IngressSpec 3:status=_
IngressSpec 1:defaultBackend=IngressBackend 2:tls=*IngressTLS 3:rules=*IngressRule 4:ingressClassName=s
IngressTLS 1:hosts=*s 2:secretName=s
IngressRule 1:host=s 2:-=IngressRuleValue
IngressRuleValue 1:http=HTTPIngressRuleValue
HTTPIngressRuleValue 1:paths=*HTTPIngressPath
HTTPIngressPath 1:path=s 2:backend=IngressBackend 3:pathType=s
IngressBackend 4:service=IngressServiceBackend
IngressServiceBackend 1:name=s 2:port=ServiceBackendPort
ServiceBackendPort 1:name=s 2:number=i
Role 1:metadata=ObjectMeta 2:rules=*PolicyRule
ClusterRole 1:metadata=ObjectMeta 2:rules=*PolicyRule 3:aggregationRule=AggregationRule
AggregationRule 1:clusterRoleSelectors=*LabelSelector
PolicyRule 1:verbs=*s 2:apiGroups=*s 3:resources=*s 4:resourceNames=*s 5:nonResourceURLs=*s
RoleBinding 1:metadata=ObjectMeta 2:subjects=*Subject 3:roleRef=RoleRef
ClusterRoleBinding 1:metadata=ObjectMeta 2:subjects=*Subject 3:roleRef=RoleRef
RoleRef 1:apiGroup=s 2:kind=s 3:name=s
Subject 1:kind=s 2:apiGroup=s 3:name=s 4:namespace=s
Eviction 1:metadata=ObjectMeta 2:deleteOptions=DeleteOptions
PodDisruptionBudget 1:metadata=ObjectMeta 2:spec=PodDisruptionBudgetSpec 3:status=_
PodDisruptionBudgetSpec 1:minAvailable=IntOrString 2:selector=LabelSelector 3:maxUnavailable=IntOrString 4:unhealthyPodEvictionPolicy=s
PriorityClass 1:metadata=ObjectMeta 2:value=i 3:globalDefault=b 4:description=s 5:preemptionPolicy=s
HorizontalPodAutoscaler 1:metadata=ObjectMeta 2:spec=HorizontalPodAutoscalerSpec 3:status=_
HorizontalPodAutoscalerSpec 1:scaleTargetRef=CrossVersionObjectReference 2:minReplicas=?i 3:maxReplicas=i 4:metrics=*MetricSpec
CrossVersionObjectReference 1:kind=s 2:name=s 3:apiVersion=s
MetricSpec 1:type=s 4:resource=ResourceMetricSource
ResourceMetricSource 1:name=s 2:target=MetricTarget
MetricTarget 1:type=s 2:value=Quantity 3:averageValue=Quantity 4:averageUtilization=?i
";

#[derive(Clone, Copy, Debug)]
struct Field {
    name: &'static str,
    kind: &'static str,
    shape: Shape,
    keeps_zero: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    One,
    Many,
    Map,
}

type Messages = HashMap<&'static str, HashMap<u64, Field>>;

/// A field as it stands on the wire.
enum Wire<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The object in an enveloped body, with its `apiVersion` and `kind`.
pub(crate) fn decode(body: &[u8]) -> Result<Value, ApiError> {
    let envelope = body.strip_prefix(MAGIC).ok_or_else(|| {
        ApiError::bad_request(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]",
        )
    })?;
    let (mut api_version, mut kind, mut raw) = ("", "", &[][..]);
    for (number, wire) in fields(envelope)? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                for (number, wire) in fields(meta)? {
                    match (number, wire) {
                        (1, Wire::Bytes(bytes)) => api_version = text(bytes)?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    if !messages().contains_key(kind) {
        return Err(ApiError::unsupported_media_type(&format!(
            "{} (objects of kind {kind} aren't understood in protobuf)",
            crate::decode::BODY_TYPES
        )));
    }
    let mut object = message(kind, raw)?;
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.into();
    Ok(object)
}

fn messages() -> &'static Messages {
    static MESSAGES_BY_NAME: OnceLock<Messages> = OnceLock::new();
    MESSAGES_BY_NAME.get_or_init(|| {
        MESSAGES
            .lines()
            .filter_map(|line| {
                let (name, fields) = line.split_once(' ')?;
                Some((name, fields.split(' ').filter_map(field).collect()))
            })
            .collect()
    })
}

fn field(text: &'static str) -> Option<(u64, Field)> {
    let (number, rest) = text.split_once(':')?;
    let (name, kind) = rest.split_once('=')?;
    let shape = match kind.as_bytes().first()? {
        b'*' => Shape::Many,
        b'%' => Shape::Map,
        _ => Shape::One,
    };
    let keeps_zero = kind.starts_with('?');
    let kind = kind.trim_start_matches(['*', '%', '?']);
    Some((
        number.parse().ok()?,
        Field {
            name,
            kind,
            shape,
            keeps_zero,
        },
    ))
}

fn malformed(what: &str) -> ApiError {
    ApiError::bad_request(format!("the protobuf body is malformed: {what}"))
}

fn text(bytes: &[u8]) -> Result<&str, ApiError> {
    std::str::from_utf8(bytes).map_err(|_| malformed("a string is not UTF-8"))
}

fn varint(data: &mut &[u8]) -> Result<u64, ApiError> {
    let mut value = 0_u64;
    for shift in (0..70).step_by(7) {
        let (first, rest) = data
            .split_first()
            .ok_or_else(|| malformed("it ends inside a number"))?;
        *data = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift).unwrap_or_default();
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(malformed("a number has more than ten bytes"))
}

fn fields(mut data: &[u8]) -> Result<Vec<(u64, Wire<'_>)>, ApiError> {
    let mut out = Vec::new();
    while !data.is_empty() {
        let tag = varint(&mut data)?;
        let wire = match tag & 7 {
            0 => Wire::Number(varint(&mut data)?),
            2 => {
                let length = usize::try_from(varint(&mut data)?).unwrap_or(usize::MAX);
                let (bytes, rest) = data
                    .split_at_checked(length)
                    .ok_or_else(|| malformed("it ends inside a field"))?;
                data = rest;
                Wire::Bytes(bytes)
            }
            other => return Err(malformed(&format!("wire type {other} isn't used by Kubernetes"))),
        };
        out.push((tag >> 3, wire));
    }
    Ok(out)
}

fn message(kind: &str, data: &[u8]) -> Result<Value, ApiError> {
    match kind {
        "Time" => return time(data),
        "Quantity" => {
            let value = fields(data)?
                .into_iter()
                .find_map(|(number, wire)| match (number, wire) {
                    (1, Wire::Bytes(bytes)) => Some(bytes),
                    _ => None,
                });
            return Ok(text(value.unwrap_or(b"0"))?.into());
        }
        "IntOrString" => return int_or_string(data),
        _ => {}
    }
    let known = messages()
        .get(kind)
        .ok_or_else(|| malformed("it has a message of an unknown kind"))?;
    let mut out = Map::new();
    for (number, wire) in fields(data)? {
        let field = known.get(&number).ok_or_else(|| {
            ApiError::bad_request(format!(
                "field {number} of a {kind} in protobuf isn't understood by this server: send application/json"
            ))
        })?;
        if field.kind == "_" {
            continue;
        }
        if field.shape == Shape::Map {
            let (key, value) = entry(field, &wire)?;
            let map = out.entry(field.name).or_insert_with(|| json!({}));
            map[key] = value;
            continue;
        }
        let Some(value) = value(field, &wire)? else {
            continue;
        };
        match (field.shape, field.name) {
            (Shape::Many, name) => {
                if let Value::Array(items) = out.entry(name).or_insert_with(|| json!([])) {
                    items.push(value);
                }
            }
            (_, "-") => {
                if let Value::Object(inner) = value {
                    out.extend(inner);
                }
            }
            (_, name) => {
                out.insert(name.to_owned(), value);
            }
        }
    }
    Ok(Value::Object(out))
}

/// A field's value; None if it is the zero that means absent.
fn value(field: &Field, wire: &Wire<'_>) -> Result<Option<Value>, ApiError> {
    let repeated = field.shape == Shape::Many;
    let keep = field.keeps_zero || repeated;
    Ok(match (field.kind, wire) {
        ("s", Wire::Bytes(bytes)) => Some(Value::from(text(bytes)?)).filter(|v| keep || *v != ""),
        ("y", Wire::Bytes(bytes)) => Some(base64(bytes).into()),
        ("b", Wire::Number(number)) => Some(Value::from(*number != 0)).filter(|v| keep || *v != false),
        // Two's complement, also for int32.
        ("i", Wire::Number(number)) => Some(Value::from(number.cast_signed())).filter(|v| keep || *v != 0),
        ("s" | "y" | "b" | "i", _) | (_, Wire::Number(_)) => {
            return Err(malformed(&format!("{} has the wrong wire type", field.name)));
        }
        (kind, Wire::Bytes(bytes)) => Some(message(kind, bytes)?).filter(|value| !value.is_null()),
    })
}

fn entry(field: &Field, wire: &Wire<'_>) -> Result<(String, Value), ApiError> {
    let Wire::Bytes(bytes) = wire else {
        return Err(malformed("a map entry has the wrong wire type"));
    };
    let (mut key, mut content) = (String::new(), Wire::Bytes(b""));
    for (number, wire) in fields(bytes)? {
        match (number, wire) {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?.to_owned(),
            (2, wire) => content = wire,
            _ => {}
        }
    }
    let one = Field {
        shape: Shape::One,
        keeps_zero: true,
        ..*field
    };
    Ok((key, value(&one, &content)?.unwrap_or_default()))
}

fn time(data: &[u8]) -> Result<Value, ApiError> {
    let (mut seconds, mut nanos) = (0, 0);
    for (number, wire) in fields(data)? {
        match (number, wire) {
            (1, Wire::Number(number)) => seconds = number.cast_signed(),
            (2, Wire::Number(number)) => nanos = i32::try_from(number).unwrap_or_default(),
            _ => {}
        }
    }
    if (seconds, nanos) == (0, 0) {
        return Ok(Value::Null);
    }
    let time = Timestamp::new(seconds, nanos).map_err(|error| malformed(&error.to_string()))?;
    Ok(time.to_string().into())
}

fn int_or_string(data: &[u8]) -> Result<Value, ApiError> {
    let (mut is_text, mut number, mut content) = (false, 0, "");
    for (field, wire) in fields(data)? {
        match (field, wire) {
            (1, Wire::Number(kind)) => is_text = kind == 1,
            (2, Wire::Number(value)) => number = value.cast_signed(),
            (3, Wire::Bytes(bytes)) => content = text(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { content.into() } else { number.into() })
}

#[cfg(test)]
#[path = "protobuf_tests.rs"]
mod tests;
