//go:build e2e

// Package e2e keeps upstream's test suite among the requirements of this module: it is no program, so that no `tool`
// line can name it, and it is built with `go test -c`.
package e2e

import _ "k8s.io/kubernetes/test/e2e"
