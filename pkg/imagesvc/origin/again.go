package origin

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sirupsen/logrus"

	"criserver/pkg/imagesvc/download"
	"criserver/pkg/imagesvc/registry/failure"
)

// Again calls fetch, which opens a layer and uses it, until it succeeds or there is nothing left that may help: what came was
// damaged, and another server may have it right, or some of it had been kept of an earlier download. Its error tells of each call.
func Again(ctx context.Context, from Layers, fetch func() error) error {
	var before []string
	for kept := false; ; {
		err := fetch()
		wasKept := errors.Is(err, download.ErrKept)
		// Each damage leaves one server less, but for what was kept, which nobody is blamed for: it is thrown away, once.
		again := failure.IsDamage(err) && (wasKept && !kept || !wasKept && from.CanTryElsewhere())
		kept = kept || wasKept
		if !again || ctx.Err() != nil {
			if err != nil && len(before) > 0 {
				err = fmt.Errorf("%w; before that: %s", err, strings.Join(before, "; "))
			}
			return err
		}
		logrus.WithError(err).Warn("a layer came damaged and is fetched again")
		before = append(before, err.Error())
	}
}
