{{- define "herald.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "herald.labels" -}}
app.kubernetes.io/name: herald
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What never changes of a role's pods. Takes a dict of root and role. */}}
{{- define "herald.selector" -}}
app.kubernetes.io/name: herald
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "herald.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "herald.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{- define "herald.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "herald.mounts" -}}
- { name: config, mountPath: /etc/herald/herald.toml, subPath: herald.toml, readOnly: true }
- { name: scratch, mountPath: /tmp }
{{- if .Values.filesSecret }}
- { name: secrets, mountPath: /etc/herald/secrets, readOnly: true }
{{- end }}
{{- end }}

{{- define "herald.volumes" -}}
- name: config
  configMap: { name: {{ include "herald.name" . }} }
- name: scratch
  emptyDir: { sizeLimit: 64Mi }
{{- with .Values.filesSecret }}
- name: secrets
  secret: { secretName: {{ . }}, defaultMode: 0440 }
{{- end }}
{{- end }}
