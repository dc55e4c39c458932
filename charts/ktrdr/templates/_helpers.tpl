{{/*
Prefix of resource names: the release's name, followed by the chart's unless it contains it already.
At most 40 characters without dots, because Service names derive from it. A name that had to be
changed for that ends in a hash of the original, so that two long names stay different.
*/}}
{{- define "ktrdr.fullname" -}}
{{- $name := printf "%s-%s" .Release.Name (include "ktrdr.name" .) -}}
{{- if .Values.fullnameOverride -}}
{{- $name = .Values.fullnameOverride -}}
{{- else if contains (include "ktrdr.name" .) .Release.Name -}}
{{- $name = .Release.Name -}}
{{- end -}}
{{- if or (gt (len $name) 40) (contains "." $name) -}}
{{- printf "%s-%s" ($name | replace "." "-" | trunc 31 | trimSuffix "-") (sha256sum $name | trunc 8) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "ktrdr.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{/*
Prefix of cluster-scoped names. It contains the release's namespace, so that releases of the same
name in two namespaces do not collide; namespaces have no dot, so neither do NAMESPACE and NAME.
*/}}
{{- define "ktrdr.clusterName" -}}
{{- printf "%s.%s" .Release.Namespace (include "ktrdr.fullname" .) -}}
{{- end -}}

{{/* Name of the operator's own objects, and of the Lease for its leader election. */}}
{{- define "ktrdr.operator" -}}
{{- include "ktrdr.fullname" . }}-operator
{{- end -}}

{{/* Kind of the role that the operator binds to trainers. */}}
{{- define "ktrdr.trainerRoleKind" -}}
{{- ternary "Role" "ClusterRole" (not (empty .Values.operator.watchNamespaces)) -}}
{{- end -}}

{{- define "ktrdr.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "ktrdr.operator" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.create is false and serviceAccount.name is empty: the operator's rights would be bound to the ServiceAccount \"default\", which every pod of the namespace can use; set serviceAccount.name to the ServiceAccount that the operator shall use" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* User names of the operators that the admission policy restricts, as a JSON array. */}}
{{- define "ktrdr.operatorUsers" -}}
{{- $users := list -}}
{{- if .Values.operator.enabled -}}
{{- $users = append $users (printf "system:serviceaccount:%s:%s" .Release.Namespace (include "ktrdr.serviceAccountName" .)) -}}
{{- end -}}
{{- range .Values.admission.operatorAccounts -}}
{{- $users = append $users (printf "system:serviceaccount:%s" (replace "/" ":" .)) -}}
{{- end -}}
{{- uniq $users | toJson -}}
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

{{/* Annotations of what a running trainer needs: kept on uninstall where its TrainingJob is kept. */}}
{{- define "ktrdr.keep" -}}
{{- if .Values.crds.keep -}}
annotations:
  helm.sh/resource-policy: keep
{{- end -}}
{{- end -}}

{{/* Reference of an image: a dictionary with `image` (repository, tag) and `version`. */}}
{{- define "ktrdr.image" -}}
{{- printf "%s:%s" .image.repository (default .version .image.tag) -}}
{{- end -}}

{{/* Names of a list of `{name: SECRET}`, separated by commas. */}}
{{- define "ktrdr.secretNames" -}}
{{- $names := list -}}
{{- range . -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}

{{/* An integer as an environment variable; `none` for null, which leaves the field of the pod unset. */}}
{{- define "ktrdr.idOrNone" -}}
{{- if kindIs "invalid" . -}}none{{- else -}}{{- int64 . -}}{{- end -}}
{{- end -}}

{{/* Rules of a trainer: read its TrainingJob, and patch the status; the admission policy says which part. */}}
{{- define "ktrdr.trainerRules" -}}
- apiGroups: [ktrdr.io]
  resources: [trainingjobs]
  verbs: [get, watch]
- apiGroups: [ktrdr.io]
  resources: [trainingjobs/status]
  verbs: [get, patch]
{{- end -}}

{{/* Rules of the operator. They contain those of a trainer, so it can bind that role without `bind`. */}}
{{- define "ktrdr.operatorRules" -}}
# delete: TrainingJobs whose spec.ttlSecondsAfterFinished is over.
- apiGroups: [ktrdr.io]
  resources: [trainingjobs]
  verbs: [get, list, watch, delete]
- apiGroups: [ktrdr.io]
  resources: [trainingjobs/status]
  verbs: [get, patch]
# To set blockOwnerDeletion where OwnerReferencesPermissionEnforcement is on, as on OpenShift.
- apiGroups: [ktrdr.io]
  resources: [trainingjobs/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, delete]
# Strategies: read from the user's ConfigMap, stored in an immutable one. Never changed or deleted.
- apiGroups: [""]
  resources: [configmaps, serviceaccounts]
  verbs: [get, create]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [rolebindings]
  verbs: [get, create]
# list: by field selector, for pods whose status does not say why they do not start.
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
{{- end -}}

{{/*
Fail if an object of this release exists already and Helm would refuse to adopt it, and say what to do.
`lookup` finds nothing in `helm template` and in a client-side dry run.
Arguments: root, apiVersion, kind, name, namespace (empty: cluster-scoped), resource (as kubectl
spells it), remedy (the value that leaves the object alone).
*/}}
{{- define "ktrdr.checkOwner" -}}
{{- $found := lookup .apiVersion .kind .namespace .name -}}
{{- if $found -}}
{{- $annotations := $found.metadata.annotations | default dict -}}
{{- $release := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if or (ne $release .root.Release.Name) (ne $namespace .root.Release.Namespace) -}}
{{- $owner := "was not created by Helm" -}}
{{- if $release -}}
{{- $owner = printf "belongs to release %q in namespace %q, which is installed or was uninstalled with crds.keep" $release $namespace -}}
{{- end -}}
{{- $object := printf "%s %s%s" .resource .name (ternary (printf " -n %s" .namespace) "" (ne .namespace "")) -}}
{{- $adopt := printf "kubectl annotate --overwrite %s meta.helm.sh/release-name=%s meta.helm.sh/release-namespace=%s && kubectl label --overwrite %s app.kubernetes.io/managed-by=Helm" $object .root.Release.Name .root.Release.Namespace $object -}}
{{- fail (printf "\n\n%s %q exists already and %s.\nEither use it as it is: %s\nOr let this release take it over: %s\n" .kind .name $owner .remedy $adopt) -}}
{{- end -}}
{{- end -}}
{{- end -}}
