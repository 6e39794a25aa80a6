package healthd

// verdict is what the probes so far say about a backend.
type verdict uint8

const (
	unknown verdict = iota // no probe has decided anything yet; never reported
	up
	down
)

func (v verdict) String() string {
	switch v {
	case up:
		return "up"
	case down:
		return "down"
	}
	return "unknown"
}

// hysteresis keeps a single lost or lucky probe from changing the verdict. The zero value knows nothing.
type hysteresis struct {
	verdict verdict
	streak  int // probes in a row that speak against the verdict
}

// next returns the state after one more probe. A backend that is up goes down after fall bad probes in a row, one that
// is down comes up after rise good ones. The first good probe makes an unknown one up: it is new, nothing speaks
// against it, and somebody waits for it.
func (h hysteresis) next(good bool, rise, fall int) hysteresis {
	if good == (h.verdict == up) && h.verdict != unknown {
		return hysteresis{verdict: h.verdict}
	}
	need, then := fall, down
	if good {
		need, then = rise, up
		if h.verdict == unknown {
			need = 1
		}
	}
	if h.streak+1 >= need {
		return hysteresis{verdict: then}
	}
	return hysteresis{verdict: h.verdict, streak: h.streak + 1}
}
