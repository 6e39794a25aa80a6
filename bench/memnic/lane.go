//go:build linux

package memnic

import (
	"fmt"
	"math/rand/v2"

	"github.com/sluice-lb/sluice/forwarder"
	"github.com/sluice-lb/sluice/forwarder/packet"
	"github.com/sluice-lb/sluice/forwarder/xsk"
)

// lane is one worker with a NIC of its own, and the frames that it gets. It belongs to one goroutine.
type lane struct {
	node   *node
	number int
	nic    *xsk.MemoryNIC
	port   *window
	worker *forwarder.Worker
	rng    *rand.PCG
	next   uint32 // the next flow that nobody has seen; each lane has its own

	molds  [frameKinds]mold
	frames [frameKinds][][]byte // as many copies of each as there are frames in a burst
	list   [][]byte             // of the burst
	born   []uint32             // flows of the burst that get a word
	batch  [64]xsk.Desc
}

// unknownFlows is how many numbers for unknown flows each lane has; then it begins again.
const unknownFlows = 1 << 31 / maxWorkers

// burstShare is which part of the frames in circulation a burst is: the others lie in the fill ring meanwhile.
const burstShare = 2

func newLane(n *node, number, frames int) (l *lane, err error) {
	burst := frames / burstShare
	l = &lane{
		node: n, number: number, rng: rand.NewPCG(uint64(number+1), uint64(n.flows)),
		list: make([][]byte, burst), born: make([]uint32, 0, burst),
	}
	o := xsk.Options{Frames: frames, FillSize: frames, CompletionSize: frames, RXSize: frames, TXSize: frames}
	if l.nic, err = xsk.NewMemoryNIC(o, 1); err != nil {
		return nil, err
	}
	umem := l.nic.Umem()
	l.port = &window{Socket: l.nic.Sockets()[0]}
	l.worker = n.engine.NewWorker(forwarder.WorkerIO{Memory: umem.Memory(), Wait: umem.Wait, Queues: []forwarder.Queue{{Port: l.port}}})
	for kind := range l.molds {
		l.molds[kind] = newMold(n.family, kind)
		length := len(l.molds[kind].frame)
		memory := make([]byte, burst*length)
		for i := range burst {
			f := memory[i*length : (i+1)*length]
			copy(f, l.molds[kind].frame)
			l.frames[kind] = append(l.frames[kind], f)
		}
	}
	return l, nil
}

// window is a port that shows so many frames of the RX ring at a time, as if others had not come yet.
type window struct {
	*xsk.Socket
	size, left int
}

// open sets how many.
func (w *window) open(size int) { w.size, w.left = size, size }

// Receive implements forwarder.Port.
func (w *window) Receive(batch []xsk.Desc) int {
	n := w.Socket.Receive(batch[:min(len(batch), w.left)])
	if w.left -= n; w.left == 0 {
		w.left = w.size
	}
	return n
}

// Backlog implements forwarder.Port: nothing is seen of the frames that have not come yet.
func (w *window) Backlog() (waiting, size int) {
	_, size = w.Socket.Backlog()
	return w.left % w.size, size
}

// put makes frame i of the burst one of a flow's.
func (l *lane) put(i, kind int, flow uint32, unknown bool) {
	f := l.frames[kind][i]
	l.molds[kind].write(f, flow, unknown)
	l.list[i] = f
}

// generate writes a burst, frame by frame.
func (l *lane) generate(write func(i int)) {
	for i := range l.list {
		write(i)
	}
}

// known is any flow that has a word.
func (l *lane) known() uint32 {
	return uint32(l.rng.Uint64() >> 32 * uint64(l.node.flows) >> 32)
}

// unknown is a flow that nobody has seen.
func (l *lane) unknown() uint32 {
	flow := uint32(l.number)*unknownFlows + l.next
	l.next = (l.next + 1) % unknownFlows
	return flow
}

// fresh writes a burst of the SYNs of so many new flows, and then their ACKs.
func (l *lane) fresh(flows int) {
	l.born = l.born[:0]
	for i := range flows {
		flow := l.unknown()
		l.put(i, synFrame, flow, true)
		l.put(flows+i, ackFrame, flow, true)
		l.born = append(l.born, flow)
	}
}

// write makes a burst of a mix.
func (l *lane) write(mix string) {
	l.born = l.born[:0]
	switch mix {
	case Misses, Cookie, Challenge:
		l.generate(func(i int) { l.put(i, synFrame, l.unknown(), true) })
	case New, Evict:
		l.fresh(len(l.list) / 2)
	case New10:
		flow := uint32(0)
		l.generate(func(i int) {
			switch i % 20 {
			case 4:
				flow = l.unknown()
				l.put(i, synFrame, flow, true)
			case 14:
				l.put(i, ackFrame, flow, true)
				l.born = append(l.born, flow)
			default:
				l.put(i, ackFrame, l.known(), false)
			}
		})
	case Replies:
		l.generate(func(i int) { l.put(i, replyFrame, l.known(), false) })
	default:
		l.generate(func(i int) { l.put(i, ackFrame, l.known(), false) })
	}
}

// forget frees the words of the flows that the burst has brought.
func (l *lane) forget() {
	var m packet.Meta
	f := l.frames[ackFrame][0]
	for _, flow := range l.born {
		l.molds[ackFrame].write(f, flow, true)
		packet.Parse(f, &l.node.keys.Flow, &m)
		if i, w := l.node.table.Lookup(m.Hash); w != 0 {
			l.node.table.Remove(i, w)
		}
	}
}

// deliver puts the burst into the RX ring.
func (l *lane) deliver(batch int) {
	l.nic.DeliverBatch(0, l.list)
	l.port.open(batch)
}

// forward has the worker treat what is there. This, or swap, is what is timed.
func (l *lane) forward() (packets int) {
	for n := l.worker.Poll(0); n > 0; n = l.worker.Poll(0) {
		packets += n
	}
	return packets
}

// swap is the least that a forwarder can do on these rings.
func (l *lane) swap() (packets int) {
	var port forwarder.Port = l.port
	memory := l.nic.Umem().Memory()
	for n := port.Receive(l.batch[:]); n > 0; n = port.Receive(l.batch[:]) {
		for i := range l.batch[:n] {
			f := memory[l.batch[i].Addr : l.batch[i].Addr+12]
			a, b := [6]byte(f[:6]), [6]byte(f[6:])
			copy(f, b[:])
			copy(f[6:], a[:])
		}
		port.Transmit(l.batch[:n])
		_ = port.Wake()
		packets += n
	}
	return packets
}

// pass sends the burst through the worker, untimed.
func (l *lane) pass(batch int) error {
	l.deliver(batch)
	return l.collect(l.forward())
}

// collect takes the burst out of the TX ring. All of it must be there: else something else was measured than was meant.
func (l *lane) collect(received int) error {
	if sent := l.nic.Collect(0, nil); sent != len(l.list) || received != sent {
		return fmt.Errorf("of %d frames the worker received %d and sent %d; all should be", len(l.list), received, sent)
	}
	return nil
}
