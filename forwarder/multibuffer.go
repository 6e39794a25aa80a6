package forwarder

import "github.com/sluice-lb/sluice/forwarder/xsk"

// chain says where the further frames of a packet are in batch.tails.
type chain struct{ first, count uint8 }

// gather leaves in descs one frame a packet, the first, with the whole packet's length; further frames move to tails. It
// returns the number of packets.
func (w *Worker) gather(n int) (packets int) {
	tails := 0
	for i := 0; i < n; packets++ {
		d := w.descs[i]
		i++
		if d.Options&xsk.Continued == 0 {
			w.descs[packets] = d
			continue
		}
		c := chain{first: uint8(tails)}
		for more := true; more; i++ {
			w.tails[tails] = w.descs[i]
			tails++
			c.count++
			d.Len += w.descs[i].Len
			more = w.descs[i].Options&xsk.Continued != 0
		}
		w.descs[packets], w.chains[packets] = d, c
	}
	return packets
}

// tailOf returns the further frames of packet i.
func (w *Worker) tailOf(i int) []xsk.Desc {
	c := w.chains[i]
	return w.tails[c.first : c.first+c.count]
}

// departAll is depart for a packet in several frames; length is that of all of them.
func (w *Worker) departAll(q int32, i, start, length int) {
	tails := w.tailOf(i)
	first := length
	for _, d := range tails {
		first -= int(d.Len)
	}
	w.depart(q, i, start, first)
	out := &w.leaving[q]
	out.descs[out.n-1].Options = xsk.Continued
	for _, d := range tails {
		out.descs[out.n], out.indices[out.n] = d, continuation
		out.n++
	}
	out.others = true
}
