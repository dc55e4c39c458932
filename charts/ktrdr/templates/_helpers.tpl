{{/* Prefix of resource names: the release's name, with the chart's unless that says it already. */}}
{{- define "ktrdr.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "ktrdr.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "ktrdr.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "ktrdr.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{/* Name of the operator's own objects. */}}
{{- define "ktrdr.operator" -}}
{{- include "ktrdr.fullname" . }}-operator
{{- end -}}

{{- define "ktrdr.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "ktrdr.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "ktrdr.selectorLabels" -}}
app.kubernetes.io/name: {{ include "ktrdr.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "ktrdr.labels" -}}
{{ include "ktrdr.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Reference of an image: a dictionary with `image` (repository, tag) and `version`. */}}
{{- define "ktrdr.image" -}}
{{- printf "%s:%s" .image.repository (default .version .image.tag) -}}
{{- end -}}
