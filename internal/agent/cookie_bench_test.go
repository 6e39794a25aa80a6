//go:build linux

package agent

import (
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-lb/sluice/forwarder/guard"
	"github.com/sluice-lb/sluice/testenv"
)

// BenchmarkCookies is what a TCP packet to a VIP costs in the ingress program, beside one without the seed of cookies.
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
	for _, c := range []struct {
		name   string
		secret *[32]byte
		port   byte
	}{{"off", nil, 80}, {"no socket", new([32]byte), 81}, {"listener, invalid cookie", new([32]byte), 80}} {
		p, err := loadPrograms([]netip.Addr{vip4, vip6}, nil, c.secret)
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
