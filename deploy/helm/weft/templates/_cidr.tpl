{{- /*
Arithmetic with IPv4 ranges, so that ranges which can't work are refused before anything reaches the cluster. The
operator checks the same, and more, while the cluster runs. Numbers are WEFT-nnnn codes; `weft explain` has them.
*/}}

{{- /* (dict "text" "10.0.0.0/8" "name" "podCIDRs[0]") → {"first": …, "last": …, "length": …}, or a failure. */}}
{{- define "weft.cidr" -}}
{{- $octet := "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])" -}}
{{- if not (regexMatch (printf "^%s(\\.%s){3}/(3[0-2]|[12]?[0-9])$" $octet $octet) .text) -}}
{{- fail (printf "WEFT-1001: %s: %q is not an IPv4 range: expected a.b.c.d/length, for example 10.244.0.0/16" .name .text) -}}
{{- end -}}
{{- $parts := splitList "/" .text -}}
{{- $length := index $parts 1 | int -}}
{{- $first := 0 -}}
{{- range splitList "." (first $parts) -}}
{{- $first = add (mul $first 256) (. | int) -}}
{{- end -}}
{{- $size := 1 -}}
{{- range until (sub 32 $length | int) -}}
{{- $size = mul $size 2 -}}
{{- end -}}
{{- if mod $first $size -}}
{{- fail (printf "WEFT-1002: %s: %s has host bits set: the range it lies in is written %s/%d" .name .text (include "weft.address" (sub $first (mod $first $size))) $length) -}}
{{- end -}}
{{- dict "first" (int64 $first) "last" (sub (add $first $size) 1) "length" $length | toJson -}}
{{- end }}

{{- /* A number as an address. */}}
{{- define "weft.address" -}}
{{- $n := int64 . -}}
{{- printf "%d.%d.%d.%d" (div $n 16777216) (mod (div $n 65536) 256) (mod (div $n 256) 256) (mod $n 256) -}}
{{- end }}

{{- /* Checks the ranges of one pool: (dict "prefix" … "path" … "cidrs" … "blockSize" … "excluded" … "retiring" … "nonMasqueradeCIDRs" …). */}}
{{- define "weft.checkPool" -}}
{{- $path := .path -}}
{{- $reserved := dict "0.0.0.0/8" "this network" "127.0.0.0/8" "loopback" "169.254.0.0/16" "link-local, the pods' gateway" "224.0.0.0/3" "multicast and reserved" -}}
{{- $largest := dict "length" 99 -}}
{{- range $i, $text := .cidrs -}}
{{- $name := printf "%s[%d]" $path $i -}}
{{- $range := include "weft.cidr" (dict "text" $text "name" $name) | fromJson -}}
{{- if or (lt (int $range.length) 8) (gt (int $range.length) 30) -}}
{{- fail (printf "WEFT-1011: %s: %s is no pod CIDR: the prefix length has to be /8 to /30" $name $text) -}}
{{- end -}}
{{- range $other, $purpose := $reserved -}}
{{- if eq "true" (include "weft.overlap" (list $text $other)) -}}
{{- fail (printf "WEFT-1011: %s: %s can't be a pod CIDR: it overlaps %s (%s)" $name $text $other $purpose) -}}
{{- end -}}
{{- end -}}
{{- if lt (int $range.length) (int $largest.length) -}}
{{- $_ := set $largest "length" $range.length -}}
{{- $_ := set $largest "text" $text -}}
{{- end -}}
{{- end -}}
{{- if and .blockSize (gt (int $largest.length) (int .blockSize)) -}}
{{- fail (printf "WEFT-1005: a block of /%d is larger than %s, the largest range of %s: use a block size of %d or more, or a larger range" (int .blockSize) $largest.text $path (int $largest.length)) -}}
{{- end -}}
{{- range $i, $text := .retiring -}}
{{- if not (has $text $.cidrs) -}}
{{- fail (printf "WEFT-1016: %sretiring[%d]: %s is no entry of %s: only a range of the pool can be retired, spelled as it is there" $.prefix $i $text $path) -}}
{{- end -}}
{{- end -}}
{{- range $i, $text := .excluded -}}
{{- $name := printf "%sexcluded[%d]" $.prefix $i -}}
{{- $inner := include "weft.cidr" (dict "text" $text "name" $name) | fromJson -}}
{{- $inside := false -}}
{{- range $outer := $.cidrs -}}
{{- $range := include "weft.cidr" (dict "text" $outer "name" $path) | fromJson -}}
{{- if and (ge $inner.first $range.first) (le $inner.last $range.last) -}}{{- $inside = true -}}{{- end -}}
{{- end -}}
{{- if not $inside -}}
{{- fail (printf "WEFT-1016: %s: %s lies in no range of %s, so that there is nothing to exclude" $name $text $path) -}}
{{- end -}}
{{- end -}}
{{- range $i, $text := .nonMasqueradeCIDRs -}}
{{- $_ := include "weft.cidr" (dict "text" $text "name" (printf "%snonMasqueradeCIDRs[%d]" $.prefix $i)) -}}
{{- end -}}
{{- end }}

{{- /* "true" if the two ranges of a list share an address. Both must have been checked. */}}
{{- define "weft.overlap" -}}
{{- $a := include "weft.cidr" (dict "text" (index . 0) "name" "") | fromJson -}}
{{- $b := include "weft.cidr" (dict "text" (index . 1) "name" "") | fromJson -}}
{{- and (le $a.first $b.last) (le $b.first $a.last) -}}
{{- end }}

{{- /* Fails where values contradict each other. */}}
{{- define "weft.check" -}}
{{- $values := .Values -}}
{{- if and (eq $values.ipam "node") (not (kindIs "invalid" $values.blockSize)) -}}
{{- fail (printf "WEFT-1015: ipam: node and blockSize: %d exclude each other: the kube-controller-manager decides the size of a node's range (--node-cidr-mask-size); leave blockSize out" (int $values.blockSize)) -}}
{{- end -}}
{{- if and (eq $values.ipam "node") $values.retiring -}}
{{- fail "WEFT-1015: ipam: node and retiring exclude each other: with ipam: node the kube-controller-manager gives ranges to nodes, and takes none back" -}}
{{- end -}}
{{- if eq (int $values.agent.metricsPort) (int $values.operator.metricsPort) -}}
{{- fail (printf "WEFT-1015: agent.metricsPort and operator.metricsPort are both %d: both listen in the node's network, so give them different ports" (int $values.agent.metricsPort)) -}}
{{- end -}}
{{- $_ := include "weft.checkPool" (dict "prefix" "" "path" "podCIDRs" "cidrs" $values.podCIDRs "blockSize" (ternary 0 ($values.blockSize | default 24) (eq $values.ipam "node")) "excluded" $values.excluded "retiring" $values.retiring "nonMasqueradeCIDRs" $values.nonMasqueradeCIDRs) -}}
{{- $named := list -}}
{{- range $i, $text := $values.podCIDRs -}}
{{- $named = append $named (list (printf "podCIDRs[%d]" $i) $text) -}}
{{- end -}}
{{- $pools := list "default" -}}
{{- range $i, $pool := $values.extraPools -}}
{{- $path := printf "extraPools[%d].cidrs" $i -}}
{{- if has $pool.name $pools -}}
{{- fail (printf "WEFT-1015: extraPools[%d].name: there are two pools named %q (podCIDRs makes the one named \"default\")" $i $pool.name) -}}
{{- end -}}
{{- $pools = append $pools $pool.name -}}
{{- $_ := include "weft.checkPool" (dict "prefix" (printf "extraPools[%d]." $i) "path" $path "cidrs" $pool.cidrs "blockSize" ($pool.blockSize | default 24) "excluded" $pool.excluded "retiring" $pool.retiring "nonMasqueradeCIDRs" $pool.nonMasqueradeCIDRs) -}}
{{- range $j, $text := $pool.cidrs -}}
{{- $named = append $named (list (printf "%s[%d]" $path $j) $text) -}}
{{- end -}}
{{- end -}}
{{- range $key := list "serviceCIDRs" "nodeCIDRs" -}}
{{- range $i, $text := index $values $key -}}
{{- $name := printf "%s[%d]" $key $i -}}
{{- $_ := include "weft.cidr" (dict "text" $text "name" $name) -}}
{{- $named = append $named (list $name $text) -}}
{{- end -}}
{{- end -}}
{{- range $i, $a := $named -}}
{{- range $b := slice $named (add $i 1 | int) -}}
{{- if eq "true" (include "weft.overlap" (list (index $a 1) (index $b 1))) -}}
{{- fail (printf "WEFT-1003: %s %s overlaps %s %s: pods, services and nodes need ranges of their own" (index $a 0) (index $a 1) (index $b 0) (index $b 1)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
