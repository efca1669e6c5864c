{{- define "ringfence.name" -}}
{{- if contains "ringfence" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-ringfence" (.Release.Name | trunc 42 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "ringfence.labels" -}}
{{ include "ringfence.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "ringfence.selector" -}}
app.kubernetes.io/name: ringfence
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ringfence.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "ringfence.securityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
readOnlyRootFilesystem: true
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* What a config lacks in a cluster, so that it is said before anything is installed. */}}
{{- define "ringfence.checked" -}}
{{- if .Values.checkConfig }}
{{- $said := print .Values.config (toYaml .Values.env) }}
{{- if not (regexMatch `(?m)^[^#\n]*\btoken_secret\s*=|RINGFENCE_ADMIN_TOKEN_SECRET` $said) }}
{{- fail "config: listen.admin is reached from the cluster, so it needs [admin] token_secret = { env = \"RINGFENCE_TOKEN_SECRET\" } (docs/deploy.md; checkConfig=false where the Secret has it as RINGFENCE_ADMIN_TOKEN_SECRET)" }}
{{- end }}
{{- if not (regexMatch `(?m)^[^#\n]*\burl\s*=|RINGFENCE_STORE_URL` $said) }}
{{- fail "config: replicas share a Postgres, or each would admit as many calls as were bought: [store] url = { env = \"DATABASE_URL\" } (docs/deploy.md; checkConfig=false where the Secret has it as RINGFENCE_STORE_URL)" }}
{{- end }}
{{- if not (regexMatch `(?m)^[^#\n]*\bbackend\s*=\s*["'](database|redis)["']|RINGFENCE_GATE_BACKEND` $said) }}
{{- fail "config: replicas decide together: [gate] backend = \"database\", or \"redis\" (docs/deploy.md; checkConfig=false where the Secret has it as RINGFENCE_GATE_BACKEND)" }}
{{- end }}
{{- end }}
{{- end }}

{{/* What both the pods and the migration need to read the config. */}}
{{- define "ringfence.env" -}}
- name: RINGFENCE_CONFIG
  value: /etc/ringfence/ringfence.toml
- name: RINGFENCE_INBOX_SPOOL_DIR
  value: /var/lib/ringfence/spool
- name: RINGFENCE_LISTEN_ADMIN_SOCKET
  value: /run/ringfence/admin.sock
- name: RINGFENCE_LISTEN_ADMIN
  value: 0.0.0.0:9900
- name: RINGFENCE_LISTEN_WEBHOOKS
  value: 0.0.0.0:8081
- name: RINGFENCE_LISTEN_CLIENT
  value: 0.0.0.0:8082
- name: RINGFENCE_LISTEN_PROBES
  value: 0.0.0.0:9901
- name: RINGFENCE_LISTEN_API
  {{- /* Whoever reaches it may place calls: in the app's own pod nobody else does. */}}
  value: {{ eq .Values.mode "sidecar" | ternary "127.0.0.1:8080" "0.0.0.0:8080" }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "ringfence.container" -}}
name: ringfence
image: {{ include "ringfence.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve]
workingDir: /var/lib/ringfence
env:
  {{- include "ringfence.env" . | nindent 2 }}
  {{- if .Values.migrate.enabled }}
  - name: RINGFENCE_STORE_MIGRATE_ON_START
    value: "false"
  {{- end }}
{{- if eq .Values.secretAs "env" }}
envFrom:
  - secretRef:
      name: {{ .Values.secretName }}
{{- end }}
ports:
  - { name: api, containerPort: 8080 }
  - { name: webhooks, containerPort: 8081 }
  - { name: client, containerPort: 8082 }
  - { name: admin, containerPort: 9900 }
  - { name: probes, containerPort: 9901 }
# It answers /health as soon as it listens, and /ready once the database can be written.
startupProbe:
  httpGet: { path: /health, port: probes }
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /health, port: probes }
  periodSeconds: 10
  timeoutSeconds: 5
readinessProbe:
  httpGet: { path: /ready, port: probes }
  periodSeconds: 5
  timeoutSeconds: 6
{{- if gt (int .Values.preStopSleepSeconds) 0 }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ .Values.preStopSleepSeconds }}
{{- end }}
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- include "ringfence.securityContext" . | nindent 2 }}
volumeMounts:
  # Folders, not their files: so that a change of the ConfigMap or of the Secret is seen.
  - { name: ringfence-config, mountPath: /etc/ringfence, readOnly: true }
  - { name: ringfence-spool, mountPath: /var/lib/ringfence }
  - { name: ringfence-run, mountPath: /run/ringfence }
  {{- if eq .Values.secretAs "files" }}
  - { name: ringfence-secret, mountPath: /run/secrets/ringfence, readOnly: true }
  {{- end }}
{{- end }}

{{/* For the app's own chart: one of its pods' `initContainers`. With restartPolicy Always it starts before the app, and ends after it. */}}
{{- define "ringfence.sidecar" -}}
- restartPolicy: Always
  {{- include "ringfence.container" . | nindent 2 }}
{{- end }}

{{/* The pods' `volumes` that go with it. */}}
{{- define "ringfence.volumes" -}}
- name: ringfence-config
  configMap:
    name: {{ include "ringfence.name" . }}
- name: ringfence-run
  emptyDir: {}
{{- if eq .Values.secretAs "files" }}
- name: ringfence-secret
  secret:
    secretName: {{ .Values.secretName }}
{{- end }}
{{- if not (and .Values.persistence.enabled (eq .Values.mode "deployment")) }}
- name: ringfence-spool
  emptyDir:
    sizeLimit: {{ .Values.persistence.size }}
{{- end }}
{{- end }}
