package steer

import "testing"

// What the verifier has to look at, of the million instructions that it does at most, is also what an attachment waits for.
func TestComplexity(t *testing.T) {
	r := newRig(t, 4)
	info, err := r.link.objects.SluiceSteer.Info()
	if err != nil {
		t.Fatal(err)
	}
	n, ok := info.VerifiedInstructions()
	if !ok {
		t.Fatal("this kernel does not tell what the verifier has looked at (Linux 5.16 does)")
	}
	t.Logf("the verifier looked at %d instructions", n)
	if n > 100_000 {
		t.Errorf("the verifier looked at %d instructions; a tenth of what it does at most is what there is time for", n)
	}
}
