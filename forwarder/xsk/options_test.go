//go:build linux

package xsk

import (
	"strings"
	"testing"
)

func TestMode(t *testing.T) {
	for _, m := range []Mode{Auto, ZeroCopy, Copy} {
		got, err := ParseMode(m.String())
		if err != nil || got != m {
			t.Errorf("ParseMode(%q) = %v, %v", m.String(), got, err)
		}
	}
	for _, s := range []string{"", "Copy", "zero-copy", "Mode(7)"} {
		if _, err := ParseMode(s); err == nil || !strings.Contains(err.Error(), "zerocopy") {
			t.Errorf("ParseMode(%q): error is %v, want one that names the modes", s, err)
		}
	}
	if got := Mode(7).String(); got != "Mode(7)" {
		t.Errorf("Mode(7) = %q", got)
	}
}

func TestOptions(t *testing.T) {
	d := Options{}.withDefaults()
	if err := d.validate(); err != nil {
		t.Fatalf("the defaults are refused: %v", err)
	}
	if d.FillSize < 2*d.RXSize {
		t.Errorf("FillSize %d leaves nothing for the NIC's own ring", d.FillSize)
	}
	if got, want := d.FramesFor(3), 3*(d.FillSize+d.TXSize); got != want {
		t.Errorf("FramesFor(3) = %d, want %d", got, want)
	}
	if got := (Options{FillSize: 64, TXSize: 32}).FramesFor(2); got != 192 {
		t.Errorf("FramesFor(2) = %d, want 192", got)
	}

	for name, c := range map[string]struct {
		change func(*Options)
		want   string // in the error
	}{
		"ring not a power of two":  {func(o *Options) { o.TXSize = 100 }, "TXSize is 100: must be a power of two"},
		"ring negative":            {func(o *Options) { o.RXSize = -1 }, "RXSize is -1"},
		"ring too large":           {func(o *Options) { o.FillSize = 1 << 21 }, "FillSize is 2097152"},
		"fill below RX":            {func(o *Options) { o.FillSize = 1024 }, "below RXSize 2048"},
		"completion below TX":      {func(o *Options) { o.CompletionSize = 1024 }, "below TXSize 2048"},
		"fewer frames than fill":   {func(o *Options) { o.Frames = 4095 }, "must be from FillSize (4096)"},
		"too many frames":          {func(o *Options) { o.Frames = 1<<24 + 1 }, "Frames is 16777217"},
		"negative frames":          {func(o *Options) { o.Frames = -5 }, "Frames is -5"},
		"headroom beyond the page": {func(o *Options) { o.Headroom = 4096 }, "Headroom is 4096"},
		"negative headroom":        {func(o *Options) { o.Headroom = -32 }, "Headroom is -32"},
	} {
		o := d
		c.change(&o)
		if _, err := newUmem(o, noSystem{t: t}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want %q in it", name, err, c.want)
		}
	}
}

// noSystem fails the test at the first system call.
type noSystem struct {
	system
	t *testing.T
}

func (n noSystem) memory(int) ([]byte, bool, error) {
	n.t.Error("memory was mapped before the options were checked")
	return nil, false, nil
}
