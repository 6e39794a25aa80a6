package healthd

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/internal/config"
)

// Probes by a plain connect leave no socket in TIME_WAIT, neither here nor at the backend.
func TestProbesLeaveNoTimeWait(t *testing.T) {
	tcp := serve(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	p := newProber("test")
	for range 20 {
		p.probe(t.Context(), tcp, config.Check{Type: "tcp", Timeout: config.Duration(time.Second)})
	}
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	const timeWait = "06" // TCP_TIME_WAIT in net/tcp_states.h
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line)
		port := fmt.Sprintf(":%04X", tcp.Port())
		if f[3] == timeWait && (strings.HasSuffix(f[1], port) || strings.HasSuffix(f[2], port)) {
			t.Fatalf("left in TIME_WAIT: %s", line)
		}
	}
}
