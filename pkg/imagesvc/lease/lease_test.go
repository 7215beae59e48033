package lease_test

import (
	"context"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"criserver/pkg/imagesvc/lease"
)

func no(digest.Digest) bool  { return false }
func yes(digest.Digest) bool { return true }

func TestHeldOrNeededIsNotDeleted(t *testing.T) {
	var l lease.Leases
	one := digest.FromString("one")
	fail := func() error { t.Error("deleted"); return nil }
	if did, err := l.Delete(one, yes, fail); did || err != nil {
		t.Errorf("needed: %v, %v", did, err)
	}
	first, err := l.Hold(t.Context(), []digest.Digest{one})
	if err != nil {
		t.Fatal(err)
	}
	second, err := l.Hold(t.Context(), []digest.Digest{one, one})
	if err != nil {
		t.Fatal(err)
	}
	first()
	if did, err := l.Delete(one, no, fail); did || err != nil {
		t.Errorf("held: %v, %v", did, err)
	}
	second()
	want := errors.New("x")
	if did, err := l.Delete(one, no, func() error { return want }); !did || !errors.Is(err, want) {
		t.Errorf("free: %v, %v", did, err)
	}
}

func TestHoldWaitsForTheDeletion(t *testing.T) {
	var l lease.Leases
	one := digest.FromString("one")
	begun, end, deleted := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		_, _ = l.Delete(one, no, func() error { close(begun); <-end; return nil })
		close(deleted)
	}()
	<-begun
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Hold(short, []digest.Digest{one}); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	held := make(chan func())
	go func() {
		release, err := l.Hold(context.Background(), []digest.Digest{one})
		if err != nil {
			t.Error(err)
		}
		held <- release
	}()
	select {
	case <-held:
		t.Fatal("held while it was being deleted")
	default:
	}
	close(end)
	release := <-held
	<-deleted
	if did, _ := l.Delete(one, no, func() error { return nil }); did {
		t.Error("deleted while held")
	}
	release()
	if did, _ := l.Delete(one, no, func() error { return nil }); !did {
		t.Error("not deleted: the lease that was given up counts")
	}
}
