{{- define "weft.labels" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "weft.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* What agent and operator have in common: how to find the API server, and who they are. */}}
{{- define "weft.env" -}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- with .Values.apiServer }}
{{- if .host }}
- name: KUBERNETES_SERVICE_HOST
  value: {{ .host | quote }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ .port | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Probes ask the node's loopback: the process listens there, and nothing else has to reach it. */}}
{{- define "weft.probes" -}}
livenessProbe:
  httpGet: {host: 127.0.0.1, port: metrics, path: /healthz}
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {host: 127.0.0.1, port: metrics, path: /readyz}
  periodSeconds: 5
{{- end }}

{{- /* Each replica holds a port of its node: a second one of a one-node cluster would wait for ever. `helm template` sees
no nodes. */}}
{{- define "weft.operatorReplicas" -}}
{{- if kindIs "invalid" .Values.operator.replicas -}}
{{- if eq (len (dig "items" list (lookup "v1" "Node" "" ""))) 1 }}1{{ else }}2{{ end }}
{{- else -}}
{{- .Values.operator.replicas -}}
{{- end -}}
{{- end }}
