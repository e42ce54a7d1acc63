// names prints, one NAME=reference a line, the images that this version's e2e.test expects.
package main

import (
	"fmt"

	"k8s.io/kubernetes/test/utils/image"
)

func main() {
	for _, i := range []struct {
		name string
		id   image.ImageID
	}{
		{"AGNHOST", image.Agnhost},
		{"AGNHOST_PREV", image.AgnhostPrev},
		{"BUSYBOX", image.BusyBox},
		{"DNSTOOLS", image.GlibcDnsTesting},
		{"IPTABLES", image.DistrolessIptables},
		{"NGINX", image.Nginx},
		{"NGINX_NEW", image.NginxNew},
		{"PAUSE", image.Pause},
		{"REGRESSION", image.RegressionIssue74839},
	} {
		fmt.Printf("%s=%s\n", i.name, image.GetE2EImage(i.id))
	}
}
