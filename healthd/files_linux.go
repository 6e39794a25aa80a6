package healthd

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	filesOfProbe = 4    // a hedged probe has three connections, an exec probe a pipe and more
	filesOfRest  = 128  // the control socket, agents, netlink …
	leastProbes  = 16   // at once, however few files there may be
	mostProbes   = 8192 // at once: beyond that, memory is the limit
)

// ProbesFor returns how many probes may be under way at once within the process's limit on open files, which the Go runtime has
// raised to what is allowed.
func ProbesFor() (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("read the limit on open files: %w", err)
	}
	return int(min(max((int64(min(limit.Cur, 1<<30))-filesOfRest)/filesOfProbe, leastProbes), mostProbes)), nil
}
