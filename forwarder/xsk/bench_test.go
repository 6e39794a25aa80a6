//go:build linux

package xsk

import (
	"testing"
	"time"
)

// BenchmarkSwap is the least that a worker can do: receive a batch, swap the MAC addresses, transmit.
func BenchmarkSwap(b *testing.B) {
	b.Run("1k-burst", func(b *testing.B) { benchmarkWorker(b, 1024, false, swap) })
	b.Run("8k-burst", func(b *testing.B) { benchmarkWorker(b, 8192, false, swap) })
}

// BenchmarkForward does not even look at the frames: what is left is the price of the rings.
func BenchmarkForward(b *testing.B) {
	nothing := func([]byte, []Desc) {}
	b.Run("1k-burst", func(b *testing.B) { benchmarkWorker(b, 1024, false, nothing) })
	b.Run("8k-burst", func(b *testing.B) { benchmarkWorker(b, 8192, false, nothing) })
	b.Run("1k-burst-multi-buffer", func(b *testing.B) { benchmarkWorker(b, 1024, true, nothing) })
}

func swap(memory []byte, batch []Desc) {
	for _, d := range batch {
		f := (*[12]byte)(memory[d.Addr:])
		var dst, src [6]byte
		copy(dst[:], f[0:6])
		copy(src[:], f[6:12])
		copy(f[0:6], src[:])
		copy(f[6:12], dst[:])
	}
}

// benchmarkWorker times a worker on a memory NIC. Generator and sink run on the same thread between the timed bursts.
// best-ns/packet is that of the fastest burst: on a shared machine the average tells more about the neighbours.
func benchmarkWorker(b *testing.B, burst int, multiBuffer bool, work func(memory []byte, batch []Desc)) {
	n, err := NewMemoryNIC(Options{
		Frames: 2 * burst, FillSize: burst, RXSize: burst, TXSize: burst, CompletionSize: burst, MultiBuffer: multiBuffer,
	}, 1)
	if err != nil {
		b.Fatal(err)
	}
	defer n.Umem().Close()
	n.Prepare(func(chunk int, frame []byte) {
		for i := range frame[:60] {
			frame[i] = byte(chunk + i)
		}
	})
	s, memory := n.Sockets()[0], n.Umem().Memory()
	batch := make([]Desc, 64)
	packets, worker, best := 0, time.Duration(0), time.Hour
	b.ReportAllocs()
	for b.Loop() {
		if got := n.Post(0, burst, 60); got != burst {
			b.Fatalf("posted %d of %d", got, burst)
		}
		start := time.Now()
		for {
			got := s.Receive(batch)
			if got == 0 {
				break
			}
			work(memory, batch[:got])
			if s.Transmit(batch[:got]) != got {
				b.Fatal("TX ring full")
			}
			if err := s.Wake(); err != nil {
				b.Fatal(err)
			}
		}
		took := time.Since(start)
		worker, best = worker+took, min(best, took)
		packets += n.Collect(0, nil)
	}
	b.ReportMetric(float64(worker.Nanoseconds())/float64(packets), "ns/packet")
	b.ReportMetric(float64(best.Nanoseconds())/float64(burst), "best-ns/packet")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRing is the price of one entry through one ring, both ends on one core, in batches of 64.
func BenchmarkRing(b *testing.B) {
	words, slots := memoryWords(), make([]Desc, 2048)
	p, c := newProducer(words, slots), newConsumer(words, slots)
	var sum uint64
	for b.Loop() {
		n := p.reserve(64)
		for i := range n {
			*p.slot(i) = Desc{Addr: uint64(i)}
		}
		p.submit(n)
		n = c.peek(64)
		for i := range n {
			sum += c.slot(i).Addr
		}
		c.release(n)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/entry")
	_ = sum
}
