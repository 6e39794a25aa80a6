package maglev

import (
	"cmp"
	"slices"
)

// turns returns whose turn it is, n times: indices of weights, each as often as its weight says and spread as evenly as
// whole turns can be. After any number of turns each backend has had its exact share of them, rounded up or down; with
// equal weights they go round. Those whose weight is too small for a whole turn in n have one nevertheless, at the start,
// and the rest is shared among the others. There are at most n weights, none of them zero, and n is at most MaxSize.
//
// A backend's turn k, counted from zero, may come once the exact share exceeds k, and has to before the share exceeds
// k+1. Of the backends whose next turn may come, the one whose turn has to be first is next. As the shares add up to the
// turns, all turns come in time that way (Baruah, Cohen, Plaxton and Varvel, "Proportionate progress: a notion of
// fairness in resource allocation", Algorithmica 1996; with a single processor, earliest deadline first is enough).
// All numbers are whole, so that all machines agree.
func turns(weights []uint16, n int) []uint16 {
	order := make([]uint16, 0, n)
	byWeight := make([]uint16, len(weights))
	total := uint64(0)
	for i, w := range weights {
		byWeight[i] = uint16(i)
		total += uint64(w)
	}
	slices.SortFunc(byWeight, func(a, b uint16) int {
		return cmp.Or(cmp.Compare(weights[a], weights[b]), cmp.Compare(a, b))
	})
	for len(byWeight) > 0 && uint64(weights[byWeight[0]])*uint64(n-len(order)) < total {
		total -= uint64(weights[byWeight[0]])
		order = append(order, byWeight[0])
		byWeight = byWeight[1:]
	}
	slices.Sort(byWeight)

	// coming[t] is the first in a list of those whose next turn may come from time t on, plus one; next goes on in it.
	coming := make([]uint16, n-len(order))
	next := make([]uint16, len(weights))
	turn := make([]uint32, len(weights)) // which is the next
	var may []uint16                     // a heap of those whose next turn may come now
	before := func(a, b uint16) bool {
		x, y := uint64(turn[a]+1)*uint64(weights[b]), uint64(turn[b]+1)*uint64(weights[a])
		return x < y || x == y && a < b
	}
	may = append(may, byWeight...) // all first turns may come, and sorted is a heap if deadlines are equal
	slices.SortFunc(may, func(a, b uint16) int {
		if before(a, b) {
			return -1
		}
		return 1
	})
	for t := range coming {
		for b := coming[t]; b != 0; b = next[b-1] {
			may = append(may, b-1)
			for i := len(may) - 1; i > 0 && before(may[i], may[(i-1)/2]); i = (i - 1) / 2 {
				may[i], may[(i-1)/2] = may[(i-1)/2], may[i]
			}
		}
		b := may[0]
		order = append(order, b)
		turn[b]++
		from := max(uint64(turn[b])*total/uint64(weights[b]), uint64(t)+1)
		if from < uint64(len(coming)) {
			next[b], coming[from] = coming[from], b+1
		}
		last := len(may) - 1
		may[0] = may[last]
		may = may[:last]
		for i := 0; ; {
			least := i
			for child := 2*i + 1; child <= 2*i+2 && child < last; child++ {
				if before(may[child], may[least]) {
					least = child
				}
			}
			if least == i {
				break
			}
			may[i], may[least] = may[least], may[i]
			i = least
		}
	}
	return order
}
