"""The estimators among those that skl2onnx converts."""

from __future__ import annotations

from nnbackend.sklearn.estimators import MLPClassifier, MLPRegressor


def register_with_skl2onnx() -> None:
    """Let skl2onnx convert these estimators, alone and in pipelines, as it does scikit-learn's.

    Raises:
        ImportError: skl2onnx is not installed: ``pip install skl2onnx``.
    """
    try:
        import skl2onnx
        from skl2onnx.common import shape_calculator as shapes
        from skl2onnx.operator_converters import multilayer_perceptron as converters
    except ImportError as error:
        raise ImportError(f"skl2onnx is missing ({error}): pip install skl2onnx") from error
    skl2onnx.update_registered_converter(
        MLPClassifier,
        "NNBackendMLPClassifier",
        shapes.calculate_linear_classifier_output_shapes,
        converters.convert_sklearn_mlp_classifier,
        options={
            "zipmap": [True, False, "columns"],
            "output_class_labels": [False, True],
            "nocl": [True, False],
        },
    )
    skl2onnx.update_registered_converter(
        MLPRegressor,
        "NNBackendMLPRegressor",
        shapes.calculate_linear_regressor_output_shapes,
        converters.convert_sklearn_mlp_regressor,
    )
