{{/* Names: RELEASE-operator and RELEASE-gateway, so that a release called kubeformer has kubeformer-gateway. */}}
{{- define "kubeformer.operator" -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}-operator{{- end }}
{{- define "kubeformer.gateway" -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}-gateway{{- end }}

{{/* Labels that select the pods of a component: (list . "operator"). They never change, as a Deployment's selector cannot. */}}
{{- define "kubeformer.selector" -}}
app.kubernetes.io/name: kubeformer
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* All labels of an object of a component. */}}
{{- define "kubeformer.labels" -}}
{{ include "kubeformer.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ (index . 0).Chart.Name }}-{{ (index . 0).Chart.Version }}
{{- end }}

{{/* What the namespace's Pod Security standard `restricted` asks of a pod and of a container, and no writable root. */}}
{{- define "kubeformer.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
{{- define "kubeformer.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Base URL of the gateway for clients: the value, or that of its Service. */}}
{{- define "kubeformer.gatewayUrl" -}}
{{- if .Values.gateway.url -}}{{ .Values.gateway.url }}
{{- else -}}http://{{ include "kubeformer.gateway" . }}.{{ .Release.Namespace }}{{ if ne (int .Values.gateway.service.port) 80 }}:{{ .Values.gateway.service.port }}{{ end }}
{{- end -}}
{{- end }}

{{/* Where the pods of a process run: (list . "operator" .Values.operator). */}}
{{- define "kubeformer.placement" -}}
{{- $values := index . 2 -}}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "kubeformer.selector" . | nindent 8 }}
{{- end }}

{{/* The operator's settings file, as operator/kubeformer/app/settings.py reads it. */}}
{{- define "kubeformer.settings" -}}
{{- dict
  "workerImage" .Values.images.runtime
  "serverImage" .Values.images.runtime
  "vllmImage" .Values.images.vllm
  "imagePullPolicy" .Values.images.pullPolicy
  "imagePullSecrets" .Values.images.pullSecrets
  "storage" .Values.storage
  "gatewayUrl" (include "kubeformer.gatewayUrl" .)
  "gangs" .Values.gangs
  "workerDefaults" (dict "resources" .Values.workers)
  "serverDefaults" (dict "resources" .Values.servers)
  "cleanup" .Values.cleanup
  "leaderElection" (dict "namespace" .Release.Namespace "name" (include "kubeformer.operator" .))
  "healthPort" 8081
  "reconcilers" .Values.operator.reconcilers
  "writesPerSecond" .Values.operator.writesPerSecond
  "writeBurst" (mul 2 .Values.operator.writesPerSecond)
  "progressStatusSeconds" .Values.operator.progressStatusSeconds
  "logLevel" .Values.operator.logLevel
  | toPrettyJson }}
{{- end }}
