//go:build linux

package testenv

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// Dialer makes connections from inside a namespace. Its DialContext fits http.Transport and the like.
//
// A dial keeps its thread until the connection is made or refused. Addresses are numeric: a name would be resolved in
// no namespace in particular. MPTCP is off, so that what is tested is plain TCP.
type Dialer struct {
	Namespace *Namespace
	Source    netip.Addr // the address to dial from; zero: the kernel chooses
	Port      uint16     // the port to dial from, with a Source; zero: the kernel chooses
}

// Dialer makes connections from inside the namespace, from an address that the kernel chooses.
func (ns *Namespace) Dialer() *Dialer { return &Dialer{Namespace: ns} }

// DialContext connects to a numeric address. The network is one of tcp, udp and their forms with 4 or 6.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial %s from %s: %w; give a numeric address and port", address, d.Namespace, err)
	}
	var dialer net.Dialer
	dialer.SetMultipathTCP(false)
	if d.Source.IsValid() {
		switch network {
		case "tcp", "tcp4", "tcp6":
			dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(d.Source, d.Port))
		default:
			dialer.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(d.Source, d.Port))
		}
	}
	err = d.Namespace.Do(func() error {
		conn, err = dialer.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Transport makes HTTP requests through the Dialer. The caller sets its other fields before the first request and calls
// CloseIdleConnections when done.
func (d *Dialer) Transport() *http.Transport { return &http.Transport{DialContext: d.DialContext} }

// Listen opens a listening TCP socket inside the namespace, without MPTCP.
func (ns *Namespace) Listen(network, address string) (l net.Listener, err error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	err = ns.Do(func() error {
		l, err = config.Listen(context.Background(), network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", ns, err)
	}
	return l, nil
}

// ListenPacket opens a datagram socket inside the namespace.
func (ns *Namespace) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = ns.Do(func() error {
		c, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", ns, err)
	}
	return c, nil
}

// connect makes a TCP connection to see whether the address answers.
func (ns *Namespace) connect(addr netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, err := ns.Dialer().DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return err
	}
	return conn.Close()
}
