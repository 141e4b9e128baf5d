{{- define "sightline.name" -}}
{{- printf "%s-sightline" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that select the pods of a component; argument: (list $ "component"). */}}
{{- define "sightline.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: sightline
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "sightline.labels" -}}
{{- $root := index . 0 -}}
{{ include "sightline.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- define "sightline.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}{{ $image.repository }}@{{ $image.digest }}{{- else -}}{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}{{- end -}}
{{- end -}}

{{/* Fields of every pod; argument: (list $ "component" gpus). enableServiceLinks: the variables SIGHTLINE_…_SERVICE_HOST of Kubernetes would be refused as
     unknown settings. */}}
{{- define "sightline.pod" -}}
{{- $root := index . 0 -}}
serviceAccountName: {{ include "sightline.name" $root }}-{{ index . 1 }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- $selector := $root.Values.nodeSelector -}}
{{- $tolerations := $root.Values.tolerations -}}
{{- if index . 2 -}}
{{- $selector = merge (dict) $root.Values.gpuNodes.nodeSelector $selector -}}
{{- $tolerations = concat $tolerations $root.Values.gpuNodes.tolerations -}}
{{- end -}}
{{- with $selector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sightline.container" -}}
image: {{ include "sightline.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Argument: (dict "cpu" … "memory" bytes "gpus" count "scratch" quantity). The request of memory is its limit: a pod
     whose decoders grow does not meet the limit of its node first. */}}
{{- define "sightline.resources" -}}
requests:
  cpu: {{ .cpu.request | quote }}
  memory: {{ int64 .memory | quote }}
limits:
  cpu: {{ .cpu.limit | quote }}
  memory: {{ int64 .memory | quote }}
{{- if .gpus }}
  nvidia.com/gpu: {{ int .gpus }}
{{- end }}
{{- end -}}

{{/* Variables of every container; argument: (list $ "role of objectStore.secrets"). */}}
{{- define "sightline.environment" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- with $root.Values -}}
- {name: SIGHTLINE_CONFIG, value: /etc/sightline/sightline.toml}
- {name: SIGHTLINE_STORE, value: {{ .store | quote }}}
- {name: SIGHTLINE_PROFILE, value: {{ .profile | quote }}}
- {name: SIGHTLINE_MEMORY_BYTES, value: {{ int64 .decoder.memoryBytes | quote }}}
- {name: SIGHTLINE_REQUIRE_SANDBOX, value: {{ .decoder.requireSandbox | quote }}}
- {name: AWS_REGION, value: {{ .objectStore.region | quote }}}
{{- if .objectStore.endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ .objectStore.endpoint | quote }}}
{{- end }}
{{- if .objectStore.allowHttp }}
- {name: AWS_ALLOW_HTTP, value: "true"}
{{- end }}
{{- if get .objectStore.secrets $role }}
- {name: AWS_ACCESS_KEY_ID_FILE, value: /run/secrets/objects/access-key-id}
- {name: AWS_SECRET_ACCESS_KEY_FILE, value: /run/secrets/objects/secret-access-key}
{{- end }}
{{- end }}
{{- end -}}

{{- define "sightline.mounts" -}}
{{- $root := index . 0 -}}
- {name: settings, mountPath: /etc/sightline, readOnly: true}
- {name: tmp, mountPath: /tmp}
- {name: work, mountPath: /var/lib/sightline}
{{- if get $root.Values.objectStore.secrets (index . 1) }}
- {name: objects, mountPath: /run/secrets/objects, readOnly: true}
{{- end }}
{{- end -}}

{{/* Argument: (list $ "role" "size of /tmp" "size of /var/lib/sightline"). */}}
{{- define "sightline.volumes" -}}
{{- $root := index . 0 -}}
- name: settings
  configMap: {name: {{ include "sightline.name" $root }}}
- name: tmp
  emptyDir: {sizeLimit: {{ index . 2 }}}
- name: work
  emptyDir: {sizeLimit: {{ index . 3 }}}
{{- with get $root.Values.objectStore.secrets (index . 1) }}
- name: objects
  secret: {secretName: {{ . }}, defaultMode: 288}
{{- end }}
{{- end -}}
