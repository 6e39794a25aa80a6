package steer

import (
	"encoding/binary"
	"fmt"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The kernel's netlink family of devices (include/uapi/linux/netdev.h), which tells what drivers can do for XDP.
const (
	netdevFamily  = "netdev"
	netdevDevGet  = 1 // NETDEV_CMD_DEV_GET
	netdevIfindex = 1 // NETDEV_A_DEV_IFINDEX
	netdevXDP     = 3 // NETDEV_A_DEV_XDP_FEATURES
	netdevXmit    = 4 // NETDEV_XDP_ACT_NDO_XMIT
)

// genlHeader is struct genlmsghdr: command, version, and two bytes that must be 0, which those of nl.Genlmsg are not always.
type genlHeader [4]byte

// Len implements nl.NetlinkRequestData.
func (h genlHeader) Len() int { return len(h) }

// Serialize implements nl.NetlinkRequestData.
func (h genlHeader) Serialize() []byte { return h[:] }

// CanSend reports whether an interface of this network namespace can send frames for XDP programs now. It costs a system call or two.
// Kernels before 6.3 do not know: an error.
//
// A veth can once its other end takes such frames, which it does if it has an XDP program too, or GRO; frames vanish until then.
func CanSend(ifindex int) (bool, error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if err != nil {
		return false, fmt.Errorf("ask what interface %d can do for XDP: %w", ifindex, err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	req.AddData(genlHeader{netdevDevGet, 1})
	req.AddData(nl.NewRtAttr(netdevIfindex, nl.Uint32Attr(uint32(ifindex))))
	messages, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return false, fmt.Errorf("ask what interface %d can do for XDP: %w", ifindex, err)
	}
	for _, m := range messages {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return false, fmt.Errorf("ask what interface %d can do for XDP: %w", ifindex, err)
		}
		for _, a := range attrs {
			if a.Attr.Type == netdevXDP && len(a.Value) >= 8 {
				return binary.NativeEndian.Uint64(a.Value)&netdevXmit != 0, nil
			}
		}
	}
	return false, fmt.Errorf("ask what interface %d can do for XDP: the kernel's answer does not say", ifindex)
}

// DropsZeroCopy reports whether an interface's driver drops what XDP programs send of frames that were received in zero-copy mode, on this
// interface or another one: false if it cannot be told.
//
// The kernel sends a copy of such a frame, which lies at the very beginning of its memory (xdp_convert_zc_to_xdp_frame in net/core/xdp.c);
// virtio_net needs room for its own header there (__virtnet_xdp_xmit_one in drivers/net/virtio_net.c, as of Linux 6.18).
func DropsZeroCopy(name string) bool {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return false
	}
	defer e.Close()
	driver, err := e.DriverName(name)
	return err == nil && driver == "virtio_net"
}
