//go:build linux

package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/internal/agent/capability"
	"github.com/sluice-lb/sluice/testenv"
)

// BenchmarkCookies is what a TCP packet to a VIP, or one that may be by NAT, costs in the ingress program, beside one without the
// seed of cookies.
func BenchmarkCookies(b *testing.B) {
	testenv.RequireRoot(b)
	env := testenv.ForTest(b)
	ns, err := env.Namespace("host")
	if err != nil {
		b.Fatal(err)
	}
	for _, vip := range []netip.Addr{vip4, vip6} {
		if err := ns.AddAddr("lo", netip.PrefixFrom(vip, vip.BitLen())); err != nil {
			b.Fatal(err)
		}
		l, err := ns.Listen("tcp", netip.AddrPortFrom(vip, 80).String())
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
	}
	vips, secret := []netip.Addr{vip4, vip6}, new([32]byte)
	nat := []capability.Mapping{mapping(b, "192.0.2.99:80=192.0.2.10:80"), mapping(b, "[2001:db8::99]:80=[2001:db8::10]:80")}
	for _, c := range []struct {
		name   string
		vips   []netip.Addr
		nat    []capability.Mapping
		secret *[32]byte
		port   byte
	}{{"off", vips, nil, nil, 80}, {"no socket", vips, nil, secret, 81}, {"listener, invalid cookie", vips, nil, secret, 80},
		{"no VIP", nil, nil, secret, 81}, {"no VIP, not by NAT", nil, nat, secret, 81}, {"by NAT, listener, invalid cookie", nil, nat, secret, 80}} {
		p, err := loadPrograms(c.vips, c.nat, nil, c.secret)
		if err != nil {
			b.Fatal(err)
		}
		defer p.close()
		for _, pair := range []pair{{}, {inner6: true}} {
			pkt := newTestPacket(pair)
			pkt.payload = make([]byte, 32)
			copy(pkt.payload, []byte{0x30, 0x39, 0, c.port, 0, 0, 0, 1, 0, 0, 0, 2, 0x80, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10})
			// Without an epoch that it could be of, the hash would not be calculated: the bits of the epoch are those of now.
			pkt.payload[8] = byte(guard.CookieEpoch(time.Now().Unix())&3) << 3
			b.Run(c.name+" "+pair.String()[:1], func(b *testing.B) {
				err := ns.Do(func() error {
					_, each, err := p.objs.SluiceDecap.Benchmark(pkt.bare(), b.N, nil)
					b.ReportMetric(float64(each.Nanoseconds()), "ns/packet")
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
