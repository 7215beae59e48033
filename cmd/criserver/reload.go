package main

import (
	"fmt"
	"os"
	"os/signal"
	"reflect"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"criserver/cmd/criserver/config"
	"criserver/pkg/imagesvc"
	"criserver/pkg/imagesvc/registry"
	"criserver/pkg/imagesvc/trust"
)

// handleSignals makes SIGHUP read the configuration again, SIGUSR1 log everything, and SIGUSR2 log as configured again, until
// the returned function is called.
func handleSignals(reload func() error) (stop func()) {
	configured := logrus.GetLevel()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1, unix.SIGUSR2, unix.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range signals {
			switch s {
			case unix.SIGUSR1:
				logrus.SetLevel(logrus.DebugLevel)
			case unix.SIGUSR2:
				logrus.SetLevel(configured)
			default:
				if err := reload(); err != nil {
					logrus.WithError(err).Error("the configuration cannot be taken over; what was there goes on")
				}
				configured = logrus.GetLevel()
			}
			logrus.WithField("level", logrus.GetLevel()).Debug("log level is set")
		}
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
		<-done
	}
}

// imageSettings is the part of the configuration of images that may change at any time.
func imageSettings(c *config.Config) (imagesvc.Settings, error) {
	reg, err := registry.New(c.RegistryConfig("criserver/" + version))
	if err != nil {
		return imagesvc.Settings{}, fmt.Errorf("configure registries: %w", err)
	}
	policy, err := trust.New(c.Trust.Config())
	if err != nil {
		return imagesvc.Settings{}, fmt.Errorf("configure trust: %w", err)
	}
	return imagesvc.Settings{Registry: reg, Policy: policy, Pinned: c.Image.Pinned}, nil
}

// reload takes over what may change while the daemon runs: registries, trust, pinned images, the log level. current is what
// was taken over last. What else has changed is named in the log, and needs a restart, which no container notices.
func (d *daemon) reload(current *config.Config, load loadFunc) error {
	next, err := load()
	if err != nil {
		return err
	}
	settings, err := imageSettings(next)
	if err != nil {
		return err
	}
	level, err := logrus.ParseLevel(next.Log.Level)
	if err != nil {
		return err
	}
	if err := d.images.Change(settings); err != nil {
		return err
	}
	logrus.SetLevel(level)
	current.Registry, current.Trust, current.Log.Level, current.Image.Pinned = next.Registry, next.Trust, next.Log.Level, next.Image.Pinned
	current.Image.NoProgressTimeout, current.Image.MinRate = next.Image.NoProgressTimeout, next.Image.MinRate
	current.Files = next.Files
	log := logrus.WithField("files", current.Files)
	if !reflect.DeepEqual(current, next) {
		log.Warn("the configuration is read again; some of what has changed needs a restart, which no container notices")
		return nil
	}
	log.Info("the configuration is read again")
	return nil
}
