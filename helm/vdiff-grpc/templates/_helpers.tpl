{{/* Names. */}}

{{- define "vdiff.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* Short enough for the longest suffix, -server-headless. */}}
{{- define "vdiff.fullname" -}}
{{- $name := include "vdiff.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 46 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 46 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "vdiff.server" -}}{{ include "vdiff.fullname" . }}-server{{- end }}
{{- define "vdiff.headless" -}}{{ include "vdiff.server" . }}-headless{{- end }}
{{- define "vdiff.gateway" -}}{{ include "vdiff.fullname" . }}-gateway{{- end }}

{{- define "vdiff.serviceAccount" -}}
{{- default (ternary (include "vdiff.fullname" .) "default" .Values.serviceAccount.create) .Values.serviceAccount.name }}
{{- end }}

{{/* Labels. They take (list CONTEXT COMPONENT). */}}

{{- define "vdiff.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "vdiff.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "vdiff.labels" -}}
{{- $root := index . 0 -}}
{{ include "vdiff.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: vdiff-grpc
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Names that others define. The server's health services: vdiff_grpc/server/health.py. */}}

{{- define "vdiff.readyService" -}}vdiff.v1.GenerationService{{- end }}

{{/* The server's metrics as Prometheus has them: vdiff_grpc/telemetry.py. */}}
{{- define "vdiff.metric.rowsWaiting" -}}vdiff_rows_waiting{{- end }}
{{- define "vdiff.metric.rowsRunning" -}}vdiff_rows_running{{- end }}

{{/* Settings: a config map of the values, with what the chart derives, as environment variables. */}}

{{/* One value as the process reads it. Helm has numbers as floats: 4194304 would be 4.194304e+06. */}}
{{- define "vdiff.text" -}}
{{- if kindIs "bool" . }}{{ ternary "on" "off" . }}
{{- else if kindIs "slice" . }}{{ join "," . }}
{{- else if kindIs "float64" . }}{{ if eq . (floor .) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{/* (list PREFIX CONFIG); an empty value is the process's own default. */}}
{{- define "vdiff.environment" -}}
{{- $prefix := index . 0 }}
{{- range $name, $value := index . 1 }}
{{- if not (or (kindIs "invalid" $value) (and (kindIs "string" $value) (empty $value)) (and (kindIs "slice" $value) (empty $value))) }}
- name: {{ $prefix }}{{ upper $name }}
  value: {{ include "vdiff.text" $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* Fails for what the chart sets by itself: (list COMPONENT CONFIG NAME...). */}}
{{- define "vdiff.refuse" -}}
{{- range slice . 2 }}
{{- if hasKey (index $ 1) . }}
{{- $section := regexFind "^(model|tls|api_keys|metrics)" . | replace "api_keys" "apiKeys" }}
{{- fail (printf "%s.config.%s is the chart's to set: see %s.%s" (index $ 0) . (index $ 0) $section) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "vdiff.serverConfig" -}}
{{- $server := .Values.server }}
{{- $derived := dict "model" (include "vdiff.model" .) "metrics_port" (ternary $server.metrics.port 0 $server.metrics.enabled) }}
{{- include "vdiff.refuse" (list "server" $server.config "model" "tls_cert" "tls_key" "tls_client_ca" "api_keys" "metrics_port") }}
{{- if $server.tls.secretName }}
{{- $_ := set $derived "tls_cert" "/etc/vdiff/tls/tls.crt" }}
{{- $_ := set $derived "tls_key" "/etc/vdiff/tls/tls.key" }}
{{- if $server.tls.clientCaSecretName }}
{{- $_ := set $derived "tls_client_ca" "/etc/vdiff/client-ca/ca.crt" }}
{{- end }}
{{- else if or $server.tls.clientCaSecretName $server.tls.clientSecretName }}
{{- fail "server.tls.clientCaSecretName and clientSecretName need server.tls.secretName" }}
{{- end }}
{{- if and $server.tls.clientCaSecretName (not $server.tls.clientSecretName) }}
{{- fail "server.tls.clientCaSecretName needs server.tls.clientSecretName: probes must show a certificate, too" }}
{{- end }}
{{- if $server.apiKeys.secretName }}
{{- $_ := set $derived "api_keys" (printf "/etc/vdiff/api-keys/%s" $server.apiKeys.key) }}
{{- end }}
{{- $gpus := dig "limits" "nvidia.com/gpu" 0 $server.resources }}
{{- $processes := dig "tensor_parallel_size" 1 $server.config }}
{{- if and $gpus (lt (int $gpus) (int $processes)) }}
{{- fail (printf "server.config.tensor_parallel_size %d needs as many GPUs; server.resources.limits has nvidia.com/gpu: %d" (int $processes) (int $gpus)) }}
{{- end }}
{{- toYaml (merge $derived $server.config) }}
{{- end }}

{{- define "vdiff.model" -}}
{{- $model := .Values.server.model }}
{{- if eq $model.source "demo" }}demo
{{- else }}
{{- if eq $model.source "pvc" }}{{ $_ := required "server.model.source pvc needs server.model.pvc.claimName" $model.pvc.claimName }}{{ end }}
{{- if eq $model.source "image" }}{{ $_ := required "server.model.source image needs server.model.image.reference" $model.image.reference }}
{{- if semverCompare "<1.31.0-0" .Capabilities.KubeVersion.Version }}{{ fail "server.model.source image needs Kubernetes 1.31 with the feature gate ImageVolume, or 1.35" }}{{ end }}{{ end }}
{{- if eq $model.source "init" }}{{ $_ := required "server.model.source init needs server.model.init.image" $model.init.image }}{{ end }}
{{- list $model.mountPath $model.path | compact | join "/" }}
{{- end }}
{{- end }}

{{- define "vdiff.gatewayConfig" -}}
{{- $gateway := .Values.gateway }}
{{- $tls := .Values.server.tls }}
{{- $derived := dict "server" (printf "dns:///%s.%s.svc.%s:%s" (include "vdiff.headless" .) .Release.Namespace .Values.clusterDomain (include "vdiff.text" .Values.server.config.port)) }}
{{- if $tls.secretName }}
{{- $_ := set $derived "upstream_ca" "/etc/vdiff/server-ca/ca.crt" }}
{{- $_ := set $derived "upstream_name" (include "vdiff.tlsName" .) }}
{{- if $tls.clientSecretName }}
{{- $_ := set $derived "upstream_cert" "/etc/vdiff/client-tls/tls.crt" }}
{{- $_ := set $derived "upstream_cert_key" "/etc/vdiff/client-tls/tls.key" }}
{{- end }}
{{- end }}
{{- if $gateway.upstreamApiKey.secretName }}
{{- $_ := set $derived "upstream_api_key_file" (printf "/etc/vdiff/upstream-key/%s" $gateway.upstreamApiKey.key) }}
{{- end }}
{{- if $gateway.apiKeys.secretName }}
{{- $_ := set $derived "api_keys" (printf "/etc/vdiff/api-keys/%s" $gateway.apiKeys.key) }}
{{- end }}
{{- if $gateway.tls.secretName }}
{{- $_ := set $derived "tls_cert" "/etc/vdiff/tls/tls.crt" }}
{{- $_ := set $derived "tls_key" "/etc/vdiff/tls/tls.key" }}
{{- end }}
{{- include "vdiff.refuse" (list "gateway" $gateway.config "tls_cert" "tls_key" "api_keys") }}
{{- toYaml (merge (deepCopy $gateway.config) $derived) }}
{{- end }}

{{- define "vdiff.tlsName" -}}
{{- default (printf "%s.%s.svc" (include "vdiff.server" .) .Release.Namespace) .Values.server.tls.serverName }}
{{- end }}

{{/* Flags of `vdiff-grpc health` and `generate` for the server's TLS, as YAML list items. */}}
{{- define "vdiff.tlsFlags" -}}
{{- if .Values.server.tls.secretName }}
- --tls-ca=/etc/vdiff/server-ca/ca.crt
- --tls-name={{ include "vdiff.tlsName" . }}
{{- if .Values.server.tls.clientSecretName }}
- --tls-cert=/etc/vdiff/client-tls/tls.crt
- --tls-key=/etc/vdiff/client-tls/tls.key
{{- end }}
{{- end }}
{{- end }}

{{/* Times. They take a config; what is not in it is the process's default. */}}

{{/* Longer than delay and grace: the engine and the last answers need seconds, too. */}}
{{- define "vdiff.terminationSeconds" -}}
{{- $delay := ternary .drain_delay_s 0 (not (kindIs "invalid" .drain_delay_s)) }}
{{- $grace := ternary .grace_s 30 (not (kindIs "invalid" .grace_s)) }}
{{- addf $delay $grace 15 | ceil | int }}
{{- end }}

{{/* Longer than loading may take; a day where it may take for ever. */}}
{{- define "vdiff.startupSeconds" -}}
{{- $load := ternary .max_load_time_s 1800 (not (kindIs "invalid" .max_load_time_s)) | float64 }}
{{- if eq $load 0.0 }}86400{{ else }}{{ addf $load 60 | ceil | int }}{{ end }}
{{- end }}

{{/* What both Deployments have in their pods. They take (list CONTEXT COMPONENT). */}}

{{- define "vdiff.image" -}}
{{- $root := index . 0 }}
{{- $image := index . 1 }}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end }}
{{- end }}

{{- define "vdiff.podMetadata" -}}
{{- $own := index (index . 0).Values (index . 1) -}}
labels:
  {{- include "vdiff.labels" . | nindent 2 }}
  {{- with $own.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $own.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "vdiff.podSettings" -}}
{{- $root := index . 0 }}
{{- $own := index $root.Values (index . 1) -}}
serviceAccountName: {{ include "vdiff.serviceAccount" $root }}
automountServiceAccountToken: false
# Services would appear as variables, and VDIFF_GATEWAY_PORT=tcp://... is one of ours.
enableServiceLinks: false
securityContext:
  {{- toYaml $own.podSecurityContext | nindent 2 }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $own.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range $own.topologySpreadConstraints }}
  - {{ toYaml . | nindent 4 | trim }}
    {{- if not .labelSelector }}
    labelSelector:
      matchLabels:
        {{- include "vdiff.selector" $ | nindent 8 }}
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "vdiff.otelEnvironment" -}}
{{- $root := index . 0 }}
{{- if $root.Values.otlpEndpoint }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ $root.Values.otlpEndpoint | quote }}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ $root.Release.Namespace }},k8s.pod.name=$(POD_NAME),service.instance.id=$(POD_NAME)
{{- end }}
{{- end }}

{{/* A Secret's files, readable by the pod's group: (list VOLUME SECRET KEY...), all without KEY. */}}
{{- define "vdiff.secretVolume" -}}
- name: {{ index . 0 }}
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0440
    {{- with slice . 2 }}
    items:
      {{- range . }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
    {{- end }}
{{- end }}

{{- define "vdiff.secretMount" -}}
- {name: {{ . }}, mountPath: /etc/vdiff/{{ . }}, readOnly: true}
{{- end }}

{{/* What a caller of the server needs for its TLS: gateway, probes and test. */}}
{{- define "vdiff.callerVolumes" -}}
{{- with .Values.server.tls }}
{{- if .secretName }}
{{ include "vdiff.secretVolume" (list "server-ca" .secretName "ca.crt") }}
{{- end }}
{{- if .clientSecretName }}
{{ include "vdiff.secretVolume" (list "client-tls" .clientSecretName "tls.crt" "tls.key") }}
{{- end }}
{{- end }}
{{- end }}

{{- define "vdiff.callerMounts" -}}
{{- with .Values.server.tls }}
{{- if .secretName }}
{{ include "vdiff.secretMount" "server-ca" }}
{{- end }}
{{- if .clientSecretName }}
{{ include "vdiff.secretMount" "client-tls" }}
{{- end }}
{{- end }}
{{- end }}

{{/* A ServiceMonitor up to its endpoint's port. */}}
{{- define "vdiff.monitor" }}
---
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ include (print "vdiff." (index . 1)) (index . 0) }}
  labels:
    {{- include "vdiff.labels" . | nindent 4 }}
    {{- with (index . 0).Values.serviceMonitor.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  selector:
    matchLabels:
      {{- include "vdiff.selector" . | nindent 6 }}
  endpoints:
    - interval: {{ (index . 0).Values.serviceMonitor.interval }}
      path: /metrics
{{- end }}

{{- define "vdiff.dnsEgress" -}}
- ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{/* A probe: (list CONTEXT SERVICE). The kubelet's own speaks no TLS. */}}
{{- define "vdiff.serverProbe" }}
{{- $root := index . 0 }}
{{- if $root.Values.server.tls.secretName }}
exec:
  command:
    - vdiff-grpc
    - health
    - --address=127.0.0.1:{{ int $root.Values.server.config.port }}
    - --service={{ index . 1 }}
    {{- with include "vdiff.tlsFlags" $root }}{{ trim . | nindent 4 }}{{ end }}
{{- else }}
grpc:
  port: {{ int $root.Values.server.config.port }}
  service: {{ index . 1 | quote }}
{{- end }}
{{- end }}

{{/* What the containers of `helm test` share. */}}
{{- define "vdiff.testContainer" }}
{{- $root := index . 0 }}
image: {{ include "vdiff.image" (list $root $root.Values.server.image) }}
imagePullPolicy: {{ $root.Values.server.image.pullPolicy }}
resources:
  {{- toYaml $root.Values.test.resources | nindent 2 }}
securityContext:
  {{- toYaml $root.Values.server.securityContext | nindent 2 }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  {{- with include "vdiff.callerMounts" $root }}{{ trim . | nindent 2 }}{{ end }}
{{- end }}
