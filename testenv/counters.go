//go:build linux

package testenv

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Counters reads the protocol counters of the namespace under the names of nstat(8): TcpRetransSegs, UdpInErrors,
// Ip6InReceives, TcpExtListenDrops and so on. They come from snmp, netstat and snmp6 below /proc/net. For the traffic
// of one interface see the Statistics of [Namespace.Link].
func (ns *Namespace) Counters() (map[string]uint64, error) {
	counters := map[string]uint64{}
	err := ns.Do(func() error {
		for _, file := range []string{"snmp", "netstat", "snmp6"} {
			// Not /proc/net: that is the process's, which may be that of another thread.
			text, err := os.ReadFile("/proc/thread-self/net/" + file)
			if err != nil {
				return err
			}
			if file == "snmp6" {
				addPairs(counters, string(text))
			} else {
				addTables(counters, string(text))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read counters of %s: %w", ns, err)
	}
	return counters, nil
}

// addTables reads lines in twos: a line of names and a line of values, both beginning with the protocol.
func addTables(counters map[string]uint64, text string) {
	lines := strings.Split(text, "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for j := 1; j < len(names) && j < len(values); j++ {
			// Tcp MaxConn is -1 and no counter.
			if n, err := strconv.ParseUint(values[j], 10, 64); err == nil {
				counters[strings.TrimSuffix(names[0], ":")+names[j]] = n
			}
		}
	}
}

// addPairs reads lines of a name and a value.
func addPairs(counters map[string]uint64, text string) {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 2 {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				counters[f[0]] = n
			}
		}
	}
}
