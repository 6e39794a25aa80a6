package steer

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"
)

// Queues returns the number of receive queues an interface uses now, each of which needs an AF_XDP socket. Attaching an
// XDP program can change it with some drivers (virtio-net): ask again afterwards.
func Queues(name string) (int, error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return 0, fmt.Errorf("count the receive queues of %s: %w", name, err)
	}
	defer e.Close()
	channels, err := e.GetChannels(name)
	if err == nil && channels.RxCount+channels.CombinedCount > 0 {
		return int(channels.RxCount + channels.CombinedCount), nil
	}
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return 0, fmt.Errorf("count the receive queues of %s: %w", name, err)
	}
	// A driver without channels, such as tun. What sysfs shows belongs to the namespace in which it was mounted.
	dirs, err := filepath.Glob(filepath.Join("/sys/class/net", name, "queues", "rx-*"))
	if err != nil || len(dirs) == 0 {
		return 0, fmt.Errorf("count the receive queues of %s: neither ethtool nor /sys/class/net/%s/queues tells; "+
			"is /sys of this network namespace mounted?", name, name)
	}
	return len(dirs), nil
}
